/* A context-mixing coder for a matrix of small integers, most of them 0.
 *
 * The matrix is walked row by row. A cell is a chain of yes/no decisions: is it zero, its sign, its
 * magnitude in unary. For each decision several adaptive estimates, each made in another context,
 * are mixed in the logistic domain by weights that learn from every decision; a binary range coder
 * turns the mixed probability into bits. The contexts are what pruned weights show: rows and
 * columns differ in density, sign and magnitude, neighbouring inputs (pixels) resemble each other,
 * and so do those `stride` columns away (the pixel above).
 *
 * Integers only: encoder and decoder agree on any machine. Probabilities are of a set bit, in 1/2^22
 * where they are learnt and in 1/2^16 where they are used; logits are in 1/256.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE static inline
#endif

enum {
    LOGIT_MAX = 2815, /* 11 * 256 - 1: probabilities down to 2^-16 */
    HALF = 1 << 21,   /* the probability 1/2 */
    INPUTS = 12,
    UNARY = 24,       /* magnitudes above it go on as an Elias gamma code */
    UNARY_SETS = 16,
    NEVER = 1000,     /* observations after which an estimate adapts no slower */
};

/* ---- tables ---- */

static uint16_t squash_table[2 * LOGIT_MAX + 1];
static int16_t stretch_table[65536];
static uint32_t rate_table[NEVER + 1];

void mixing_init(void) {
    uint64_t power = (uint64_t)1 << 32; /* e^(-i/256) in 1/2^32 */
    for (int i = 0; i <= LOGIT_MAX; i++) {
        uint32_t p = (uint32_t)(((uint64_t)1 << 48) / (((uint64_t)1 << 32) + power));
        if (p > 65535) p = 65535;
        squash_table[LOGIT_MAX + i] = (uint16_t)p;
        squash_table[LOGIT_MAX - i] = (uint16_t)(65536 - p);
        power = power * 4278222805u >> 32;
    }
    for (int i = 0, fine = 0, coarse = 0; i < 4096; i++) {
        while (fine < 2 * LOGIT_MAX && squash_table[fine] < i) fine++;
        while (coarse < 2 * LOGIT_MAX && squash_table[coarse] < 16 * i + 8) coarse++;
        /* Exact at either end, one value for 16 probabilities between. */
        for (int j = 16 * i; j < 16 * i + 16; j++)
            if (j >= 4096 && j <= 65536 - 4096) stretch_table[j] = (int16_t)(coarse - LOGIT_MAX);
        stretch_table[i] = (int16_t)(fine - LOGIT_MAX);
        if (i) stretch_table[65536 - i] = (int16_t)(LOGIT_MAX - fine);
    }
    for (uint32_t n = 0; n <= NEVER; n++) rate_table[n] = 131072 / (2 * n + 3);
}

/* A weight stays within 256, in 1/2^16. */
ALWAYS_INLINE int32_t limited(int32_t weight) {
    weight = weight < -(1 << 24) ? -(1 << 24) : weight;
    return weight > 1 << 24 ? 1 << 24 : weight;
}

ALWAYS_INLINE int32_t clamp(int64_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : (int32_t)value;
}

ALWAYS_INLINE uint32_t squash(int64_t logit) {
    return squash_table[LOGIT_MAX + clamp(logit, -LOGIT_MAX, LOGIT_MAX)];
}

ALWAYS_INLINE int32_t stretch(uint32_t p22) { return stretch_table[p22 >> 6]; }

ALWAYS_INLINE int32_t bit_length(uint32_t value) {
    int32_t bits = 0;
    for (; value; value >>= 1) bits++;
    return bits;
}

ALWAYS_INLINE uint32_t magnitude(int32_t level) {
    return level < 0 ? (uint32_t)-level : (uint32_t)level;
}

/* ---- binary range coder ---- */

typedef struct {
    uint32_t low, high, code;
    uint8_t *out;      /* NULL in a decoder */
    const uint8_t *in; /* NULL in an encoder */
    size_t position, size;
    int error;
} coder;

ALWAYS_INLINE uint32_t next_byte(coder *c) {
    uint32_t byte = c->position < c->size ? c->in[c->position] : 0;
    c->position++;
    return byte;
}

ALWAYS_INLINE int code_bit(coder *c, const int decode, int bit, uint32_t p16) {
    uint32_t range = c->high - c->low;
    uint32_t middle = c->low + (range >> 16) * p16 + ((range & 65535) * p16 >> 16);
    if (decode) bit = c->code <= middle;
    if (bit)
        c->high = middle;
    else
        c->low = middle + 1;
    while ((c->low ^ c->high) >> 24 == 0) {
        if (decode) {
            c->code = c->code << 8 | next_byte(c);
        } else {
            if (c->position < c->size)
                c->out[c->position] = (uint8_t)(c->high >> 24);
            else
                c->error = KERNEL_FULL;
            c->position++;
        }
        c->low <<= 8;
        c->high = c->high << 8 | 255;
    }
    return bit;
}

/* The fewest bytes that, with zeros after them, lie in the last interval. */
static uint32_t last_bytes(const coder *c, uint32_t *count) {
    for (*count = 0; *count < 4; ++*count) {
        uint32_t kept = *count ? c->high >> (32 - 8 * *count) << (32 - 8 * *count) : 0;
        if (kept >= c->low) return kept;
    }
    return c->high;
}

/* ---- estimates and their mixture ---- */

typedef struct {
    uint32_t p, n; /* probability in 1/2^22; observations, weights of the first guess included */
} estimate;

ALWAYS_INLINE void observe(estimate *e, int bit, uint32_t limit) {
    int64_t error = ((int64_t)bit << 22) - e->p;
    e->p = (uint32_t)(e->p + (error * rate_table[e->n] >> 16));
    if (e->n < limit) e->n++;
}

typedef struct {
    int32_t base; /* logit that the inputs are relative to */
    int count;
    int32_t input[INPUTS]; /* zeros after the last */
    estimate *source[INPUTS];
    uint32_t limit[INPUTS];
    estimate foreign; /* a copy of what others learn */
} mixture;

ALWAYS_INLINE void start(mixture *m, int32_t base) {
    m->base = base;
    m->count = 0;
    for (int i = 0; i < INPUTS; i++) m->input[i] = 0;
}

ALWAYS_INLINE void add(mixture *m, estimate *source, uint32_t limit) {
    m->input[m->count] = stretch(source->p) - m->base;
    m->limit[m->count] = limit;
    m->source[m->count++] = source;
}

ALWAYS_INLINE void add_value(mixture *m, uint32_t p22) {
    m->foreign = (estimate){p22, 0};
    add(m, &m->foreign, NEVER);
}

/* Two sets of weights, chosen by different contexts, are added; both learn. Everything fits 32 bits
 * but the sum: inputs are at most 2 * LOGIT_MAX, without a base half of it, the error is under 2^16,
 * and `rate` is above 1 only without a base. */
ALWAYS_INLINE int code_mixed(coder *c, const int decode, int bit, mixture *m, int32_t *a,
                             int32_t *b, const int32_t rate) {
    int64_t sum = 0;
    for (int i = 0; i < INPUTS; i++) sum += (int64_t)m->input[i] * (a[i] + b[i]);
    uint32_t p16 = squash(m->base + (sum >> 16));
    bit = code_bit(c, decode, bit, p16);
    const int32_t error = rate * ((bit << 16) - (int32_t)p16);
    for (int i = 0; i < INPUTS; i++) {
        int32_t step = (m->input[i] * error + (1 << 15)) >> 16;
        a[i] = limited(a[i] + step);
        b[i] = limited(b[i] + step);
    }
    for (int i = 0; i < m->count; i++) observe(m->source[i], bit, m->limit[i]);
    return bit;
}

/* ---- the model ---- */

typedef struct {
    estimate zero, sign;
    uint32_t mean, count; /* of magnitudes: mean in 1/16 */
    int32_t class;        /* `size_class` of the mean */
} line;                   /* a row or a column */

typedef struct {
    estimate all;
    estimate near[64], column_near[256], column_row[128], strided[64], size_near[128],
        recent[96], row_near[256], size_column[256];
    estimate sign_near[9], sign_strided[81], sign_far[81];
    estimate unary[UNARY_SETS * 2], by_column[256], by_row[256], by_above[256], by_strided[256],
        by_density[256], by_columns[256];
    estimate low[16 * 2 * 256], gamma[32];
    int32_t zero_weights[16][INPUTS], zero_weights_near[8][INPUTS];
    int32_t sign_weights[2][INPUTS];
    int32_t size_weights[UNARY_SETS][INPUTS], size_weights_all[INPUTS];
} model;

#define FILL(estimates, p, n) fill((estimates), sizeof(estimates) / sizeof(estimate), (p), (n))
#define FILL_WEIGHTS(weights, w) \
    fill_weights((int32_t *)(weights), sizeof(weights) / sizeof(int32_t), (w))

static void fill(estimate *estimates, size_t count, uint32_t p, uint32_t n) {
    for (size_t i = 0; i < count; i++) estimates[i] = (estimate){p, n};
}

static void fill_weights(int32_t *weights, size_t count, int32_t value) {
    for (size_t i = 0; i < count; i++) weights[i] = value;
}

static void fill_model(model *m, uint32_t prior) {
    m->all = (estimate){prior, 30};
    FILL(m->near, prior, 5);
    FILL(m->column_near, prior, 5);
    FILL(m->column_row, prior, 5);
    FILL(m->strided, prior, 5);
    FILL(m->size_near, prior, 5);
    FILL(m->recent, prior, 5);
    FILL(m->row_near, prior, 5);
    FILL(m->size_column, prior, 5);
    FILL(m->sign_near, HALF, 1);
    FILL(m->sign_strided, HALF, 1);
    FILL(m->sign_far, HALF, 1);
    FILL(m->unary, HALF, 0);
    FILL(m->by_column, HALF, 1);
    FILL(m->by_row, HALF, 1);
    FILL(m->by_above, HALF, 1);
    FILL(m->by_strided, HALF, 1);
    FILL(m->by_density, HALF, 1);
    FILL(m->by_columns, HALF, 1);
    FILL(m->low, HALF, 2);
    FILL(m->gamma, HALF, 2);
    FILL_WEIGHTS(m->zero_weights, 8000);
    FILL_WEIGHTS(m->zero_weights_near, 0);
    FILL_WEIGHTS(m->sign_weights[0], 10000);
    FILL_WEIGHTS(m->sign_weights[1], 0);
    FILL_WEIGHTS(m->size_weights, 14000);
    FILL_WEIGHTS(m->size_weights_all, 0);
}

/* A mean magnitude, in 1/16, in sixteen classes. */
ALWAYS_INLINE int32_t size_class(uint32_t mean) {
    static const uint16_t edges[15] = {0,  16, 18, 20, 23,  27,  32, 38,
                                       46, 56, 70, 90, 128, 200, 400};
    int32_t class = 0;
    while (class < 15 && mean > edges[class]) class++;
    return class;
}

ALWAYS_INLINE void learn_size(line *l, uint32_t size, uint32_t guesses, uint32_t limit) {
    int32_t scaled = (int32_t)(size > 4000 ? 4000 : size) * 16;
    l->count++;
    if (l->count == 1) {
        l->mean = ((uint32_t)scaled + 16 * guesses) / (1 + guesses);
    } else {
        int32_t weight = (int32_t)(l->count < limit ? l->count + guesses : limit);
        /* Floor division written out: C's rounds towards zero. */
        int32_t change = scaled - (int32_t)l->mean;
        l->mean = (uint32_t)((int32_t)l->mean +
                             (change < 0 ? -((-change + weight - 1) / weight) : change / weight));
    }
    l->class = size_class(l->mean);
}

/* What lies around a cell and has been coded before it. */
typedef struct {
    int32_t left, left2, above, above2, above_left, above_right;
    int32_t stride, stride_left, stride_right, stride2; /* in the same row */
} around;

ALWAYS_INLINE int32_t sign_of(int32_t level) { return level > 0 ? 2 : level < 0; }

ALWAYS_INLINE int32_t smaller(int32_t value, int32_t limit) { return value < limit ? value : limit; }

ALWAYS_INLINE around look(const int32_t *cell, uint32_t row, uint32_t col, uint32_t cols,
                          uint32_t stride, ptrdiff_t down, ptrdiff_t right) {
    around a = {0};
    if (col > 0) a.left = cell[-right];
    if (col > 1) a.left2 = cell[-2 * right];
    if (row > 0) {
        a.above = cell[-down];
        if (col > 0) a.above_left = cell[-down - right];
        if (col + 1 < cols) a.above_right = cell[-down + right];
    }
    if (row > 1) a.above2 = cell[-2 * down];
    if (stride > 1) {
        if (col >= stride) a.stride = cell[-(ptrdiff_t)stride * right];
        if (col >= stride + 1) a.stride_left = cell[-((ptrdiff_t)stride + 1) * right];
        if (col >= stride - 1) a.stride_right = cell[-((ptrdiff_t)stride - 1) * right];
        if (col >= 2 * (uint64_t)stride) a.stride2 = cell[-2 * (ptrdiff_t)stride * right];
    }
    return a;
}

/* Code the magnitude, at least 1. `by` holds the context of each estimate but the first. */
ALWAYS_INLINE uint32_t code_size(coder *c, const int decode, uint32_t size, uint32_t negative,
                                 const mixing_shape *shape, model *m, const int32_t by[6]) {
    uint32_t value = decode ? 0 : size - 1, high = value >> shape->low_bits, count = 0;
    mixture mix;
    for (;; count++) {
        if (count == UNARY) break;
        uint32_t set = count < UNARY_SETS - 1 ? count : UNARY_SETS - 1;
        start(&mix, 0);
        add(&mix, &m->unary[set * 2 + negative], NEVER);
        add(&mix, &m->by_column[set * 16 + (uint32_t)by[0]], NEVER);
        add(&mix, &m->by_row[set * 16 + (uint32_t)by[1]], NEVER);
        add(&mix, &m->by_above[set * 16 + (uint32_t)by[2]], NEVER);
        add(&mix, &m->by_strided[set * 16 + (uint32_t)by[3]], NEVER);
        add(&mix, &m->by_density[set * 16 + (uint32_t)by[4]], NEVER);
        add(&mix, &m->by_columns[set * 16 + (uint32_t)by[5]], NEVER);
        if (!code_mixed(c, decode, count < high, &mix, m->size_weights[set], m->size_weights_all,
                        1))
            break;
    }
    if (count == UNARY) {
        uint32_t rest = decode ? 0 : high - UNARY + 1, bits = decode ? 0 : (uint32_t)bit_length(rest);
        for (uint32_t i = 1;; i++) {
            if (i == 22) { /* more than any magnitude has */
                c->error = KERNEL_DAMAGED;
                return 1;
            }
            int more = code_bit(c, decode, i < bits, m->gamma[i].p >> 6);
            observe(&m->gamma[i], more, 30);
            if (!more) {
                bits = i;
                break;
            }
        }
        uint32_t seen = 1;
        for (uint32_t i = bits - 1; i-- > 0;)
            seen = seen << 1 | (uint32_t)code_bit(c, decode, rest >> i & 1, 32768);
        count += seen - 1;
    }
    uint32_t node = 1, set = (count < 15 ? count : 15) * 2 + negative;
    for (uint32_t i = shape->low_bits; i-- > 0;) {
        estimate *e = &m->low[set * 256 + node];
        int bit = code_bit(c, decode, value >> i & 1, (uint32_t)clamp(e->p >> 6, 32, 65504));
        observe(e, bit, NEVER);
        node = node << 1 | (uint32_t)bit;
    }
    size = (count << shape->low_bits | (node - (1u << shape->low_bits))) + 1;
    if (size > shape->largest[negative]) c->error = KERNEL_DAMAGED;
    return size;
}

ALWAYS_INLINE int walk_as(coder *c, const int decode, const mixing_shape *shape, int32_t *levels,
                       ptrdiff_t down, ptrdiff_t right) {
    const uint32_t stride = shape->stride;
    const uint32_t prior = squash(shape->prior) << 6;
    /* Columns beyond either edge are never learnt and stay at the first guess. */
    const size_t margin = (size_t)stride + 1, lines = shape->cols + 2 * margin;
    model *m = malloc(sizeof *m);
    line *column = malloc(lines * sizeof *column);
    mixture mix;
    if (!m || !column) c->error = KERNEL_MEMORY;
    if (m) fill_model(m, prior);
    for (size_t i = 0; column && i < lines; i++)
        column[i] = (line){{prior, 6}, {HALF, 5}, 0, 0, 0};

    for (uint32_t r = 0; r < shape->rows && !c->error; r++) {
        line row = {{prior, 10}, {HALF, 4}, 0, 0, 0};
        uint32_t history = 0;
        int32_t recent = 0, lately = 0; /* non-zeros among the last 8 and 32 cells */
        const int32_t age = r < 8 ? (int32_t)r : 8 + smaller(bit_length(r) - 4, 6);
        for (uint32_t k = 0; k < shape->cols && !c->error; k++) {
            int32_t *cell = levels + (ptrdiff_t)r * down + (ptrdiff_t)k * right;
            const around a = look(cell, r, k, shape->cols, stride, down, right);
            line *here = column + margin + k, *west = here - 1, *east = here + 1;
            line *north = here - stride, *south = here + stride;

            /* Zero or not. */
            uint32_t beside = (west->zero.p + east->zero.p) >> 1;
            if (stride > 1) beside = (2 * beside + north->zero.p + south->zero.p) >> 2;
            const int32_t base = stretch(m->all.p);
            const int32_t by_column = clamp((stretch(here->zero.p) - base + 384) / 96, 0, 15);
            const int32_t by_row = clamp((stretch(row.zero.p) - base + 256) / 64, 0, 7);
            const int32_t by_beside = clamp((stretch(beside) - base + 384) / 80, 0, 15);
            const int32_t flags = (a.left != 0) | (a.left2 != 0) << 1 | (a.above != 0) << 2 |
                                  (a.above_right != 0) << 3 | (a.above_left != 0) << 4 |
                                  (a.above2 != 0) << 5;
            const int32_t stride_flags = (a.stride != 0) | (a.stride_right != 0) << 1 |
                                         (a.stride_left != 0) << 2 | (a.stride2 != 0) << 3 |
                                         (a.left != 0) << 4 | (a.left2 != 0) << 5;
            const uint32_t sizes =
                2 * magnitude(a.left) + magnitude(a.above) + 2 * magnitude(a.stride) +
                magnitude(a.above_right) / 2 + magnitude(a.above_left) / 2 +
                magnitude(a.stride_right) + magnitude(a.stride_left);
            start(&mix, base);
            add(&mix, &here->zero, 500);
            add(&mix, &row.zero, 120);
            add_value(&mix, beside);
            add(&mix, &m->near[flags], NEVER);
            add(&mix, &m->column_near[by_column * 16 + by_beside], NEVER);
            add(&mix, &m->column_row[by_column * 8 + by_row], NEVER);
            add(&mix, &m->strided[stride_flags], NEVER);
            add(&mix, &m->size_near[smaller(bit_length(sizes), 7) * 16 + by_beside], NEVER);
            add(&mix,
                &m->recent[smaller(recent, 5) * 16 + smaller(lately, 15)],
                NEVER);
            add(&mix, &m->row_near[(by_row * 16 + by_beside) * 2 + (a.left != 0)], NEVER);
            add(&mix, &m->size_column[here->class * 16 + by_column], NEVER);
            const int set = (a.left != 0) + 2 * (a.above != 0) + 4 * (a.stride != 0);
            int bit = code_mixed(c, decode, decode ? 0 : *cell != 0, &mix, m->zero_weights[age],
                                 m->zero_weights_near[set], 1);
            observe(&m->all, bit, NEVER);
            recent += bit - (int32_t)(history >> 7 & 1);
            lately += bit - (int32_t)(history >> 31);
            history = history << 1 | (uint32_t)bit;
            if (!bit) {
                if (decode) *cell = 0;
                continue;
            }

            /* Its sign. */
            beside = (west->sign.p + east->sign.p) >> 1;
            if (stride > 1) beside = (2 * beside + north->sign.p + south->sign.p) >> 2;
            start(&mix, 0);
            add(&mix, &here->sign, NEVER);
            add(&mix, &row.sign, 250);
            add_value(&mix, beside);
            add(&mix, &m->sign_near[sign_of(a.left) * 3 + sign_of(a.above)], NEVER);
            add(&mix,
                &m->sign_strided[sign_of(a.stride) * 27 + sign_of(a.left) * 9 +
                                 sign_of(a.stride_right) * 3 + sign_of(a.stride_left)],
                NEVER);
            add(&mix,
                &m->sign_far[sign_of(a.left2) * 27 + sign_of(a.above_right) * 9 +
                             sign_of(a.above_left) * 3 + sign_of(a.above2)],
                NEVER);
            const int negative = code_mixed(c, decode, decode ? 0 : *cell < 0, &mix,
                                            m->sign_weights[0], m->sign_weights[1], 4);

            /* Its magnitude. */
            uint32_t columns = (west->mean + east->mean) >> 1;
            if (stride > 1) columns = (2 * columns + north->mean + south->mean) >> 2;
            const uint32_t left = magnitude(a.left);
            const int32_t by[6] = {
                here->class,
                row.class,
                smaller(bit_length(left + magnitude(a.above)), 7) * 2 + negative,
                smaller(bit_length(left + magnitude(a.stride)), 7) * 2 + negative,
                by_column,
                size_class(columns),
            };
            uint32_t size = code_size(c, decode, decode ? 0 : magnitude(*cell),
                                      (uint32_t)negative, shape, m, by);
            if (decode) *cell = negative ? -(int32_t)size : (int32_t)size;
            learn_size(here, size, 2, 40);
            learn_size(&row, size, 0, 30);
        }
    }
    free(m);
    free(column);
    return c->error;
}

#define WALK(name, attribute)                                                                   \
    attribute static int name(coder *c, const mixing_shape *shape, int32_t *levels,             \
                              ptrdiff_t down, ptrdiff_t right) {                                \
        return c->out ? walk_as(c, 0, shape, levels, down, right)                              \
                      : walk_as(c, 1, shape, levels, down, right);                             \
    }

WALK(walk_portable, )
#if defined(__x86_64__) && defined(__GNUC__)
WALK(walk_avx2, __attribute__((target("avx2"))))
#endif

static int walk(coder *c, const mixing_shape *shape, int32_t *levels, ptrdiff_t down,
                ptrdiff_t right) {
#if defined(__x86_64__) && defined(__GNUC__)
    const char *asked = getenv("DEEPSZ_KERNELS");
    if (__builtin_cpu_supports("avx2") && !(asked && !strcmp(asked, "portable")))
        return walk_avx2(c, shape, levels, down, right);
#endif
    return walk_portable(c, shape, levels, down, right);
}

ptrdiff_t mixing_encode(const mixing_shape *shape, const int32_t *levels, ptrdiff_t row_step,
                        ptrdiff_t col_step, uint8_t *out, size_t room) {
    coder c = {.high = 0xFFFFFFFFu, .out = out, .size = room};
    uint32_t count;
    /* The walk writes to the matrix only when it decodes. */
    if (walk(&c, shape, (int32_t *)levels, row_step, col_step)) return c.error;
    uint32_t last = last_bytes(&c, &count);
    if (room - c.position < count) return KERNEL_FULL;
    for (; count; count--, last <<= 8) out[c.position++] = (uint8_t)(last >> 24);
    return (ptrdiff_t)c.position;
}

int mixing_decode(const mixing_shape *shape, const uint8_t *in, size_t length, int32_t *levels,
                  ptrdiff_t row_step, ptrdiff_t col_step) {
    coder c = {.high = 0xFFFFFFFFu, .in = in, .size = length};
    uint32_t count;
    for (int i = 0; i < 4; i++) c.code = c.code << 8 | next_byte(&c);
    if (walk(&c, shape, levels, row_step, col_step)) return c.error;
    /* A stream that was damaged on the way does not end where its encoder would have ended it. */
    uint32_t last = last_bytes(&c, &count);
    return c.code == last && length == c.position - 4 + count ? KERNEL_OK : KERNEL_DAMAGED;
}
