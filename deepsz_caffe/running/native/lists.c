/* From decoded streams to matrices of few different weights, and what is checked of these. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>

#include "../../codecs/native/digest.h"
#include "running.h"

/* ---- packed ---- */

/* The symbol of each code, `per_byte` of them. */
typedef struct {
    uint8_t digits[256][4];
} digits_of;

/* Where entries go. */
typedef struct {
    uint16_t *columns;
    void *symbols; /* of one byte each, or of two */
    uint32_t *counts;
} list;

/* Do ENTRY(symbol) for entries 0, 1, ...: `per_byte` symbols a code, or at 0 one in two bytes. With
 * `per_byte` a constant, and all that changes in variables of its own, it is a few instructions. */
#define FOR_ENTRIES(ENTRY)                                                                     \
    do {                                                                                       \
        size_t i = 0;                                                                          \
        if (per_byte == 0)                                                                     \
            for (; i < entries; i++) ENTRY(codes[i] | (uint32_t)codes[entries + i] << 8);      \
        else                                                                                   \
            for (; i + per_byte <= entries; codes++)                                           \
                for (uint32_t digit = 0; digit < per_byte; digit++, i++)                       \
                    ENTRY(table->digits[*codes][digit]);                                       \
        for (uint32_t digit = 0; i < entries; digit++, i++) ENTRY(table->digits[*codes][digit]); \
    } while (0)

/* A symbol 0 is written, too, but the next one takes its place. `behind` is the column behind the
 * last entry's. */
static inline size_t add_entries(const uint8_t *steps, const uint8_t *codes, size_t entries,
                                 const digits_of *table, const uint32_t per_byte, const int wide,
                                 uint32_t behind, const uint32_t cols, list to) {
    size_t count = 0, row_start = 0;
#define ENTRY(found)                                                                           \
    do {                                                                                       \
        const uint32_t symbol = (found);                                                       \
        behind += steps[i] + 1u;                                                               \
        while (behind > cols) {                                                                \
            behind -= cols;                                                                    \
            *to.counts++ = (uint32_t)(count - row_start);                                      \
            row_start = count;                                                                 \
        }                                                                                      \
        to.columns[count] = (uint16_t)(behind - 1);                                            \
        if (wide)                                                                              \
            ((uint16_t *)to.symbols)[count] = (uint16_t)symbol;                                \
        else                                                                                   \
            ((uint8_t *)to.symbols)[count] = (uint8_t)symbol;                                  \
        count += symbol != 0;                                                                  \
    } while (0)
    FOR_ENTRIES(ENTRY);
#undef ENTRY
    *to.counts = (uint32_t)(count - row_start);
    return count;
}

/* Check that a chunk's entries are what they should be, and make its table. */
static int open_chunk(const uint8_t *steps, const uint8_t *codes, size_t entries, uint32_t per_byte,
                      uint32_t symbols, size_t cells, uint32_t cols, digits_of *table) {
    uint32_t powers = 1, largest = 0;
    uint64_t needed = entries;

    if (per_byte > 4 || symbols == 0 || symbols > 65536 || cols == 0 || cols > MOST_COLUMNS ||
        cells == 0)
        return RUNNING_DAMAGED;
    for (uint32_t i = 0; i < per_byte; i++)
        if ((powers *= symbols) > 256) return RUNNING_DAMAGED;
    for (uint32_t code = 0; per_byte && code < powers; code++)
        for (uint32_t i = 0, rest = code; i < per_byte; i++, rest /= symbols)
            table->digits[code][i] = (uint8_t)(rest % symbols);
    if (per_byte == 0) {
        for (size_t i = 0; i < entries; i++)
            if ((codes[i] | (uint32_t)codes[entries + i] << 8) >= symbols) return RUNNING_DAMAGED;
    } else {
        for (size_t i = 0; i < (entries + per_byte - 1) / per_byte; i++)
            largest = codes[i] > largest ? codes[i] : largest;
        if (largest >= powers) return RUNNING_DAMAGED;
    }
    for (size_t i = 0; i < entries; i++) needed += steps[i];
    return needed > cells ? RUNNING_DAMAGED : RUNNING_OK;
}

int list_packed(const uint8_t *steps, const uint8_t *codes, size_t entries, uint32_t per_byte,
                uint32_t symbols, uint64_t first, size_t cells, uint32_t cols, uint16_t *columns,
                void *listed, uint32_t *counts, size_t *count) {
    digits_of table;
    int error = open_chunk(steps, codes, entries, per_byte, symbols, cells, cols, &table);
    if (error) return error;
    uint64_t rows = (first + cells - 1) / cols - first / cols + 1;
    memset(counts, 0, (size_t)rows * sizeof *counts);
    uint32_t col = (uint32_t)(first % cols);
    list to = {columns, listed, counts};
#define ADD(per_byte, wide) add_entries(steps, codes, entries, &table, per_byte, wide, col, cols, to)
    switch (per_byte) {
    case 0: *count = symbols > MOST_SMALL ? ADD(0, 1) : ADD(0, 0); break;
    case 1: *count = ADD(1, 0); break;
    case 2: *count = ADD(2, 0); break;
    case 3: *count = ADD(3, 0); break;
    default: *count = ADD(4, 0); break;
    }
#undef ADD
    return RUNNING_OK;
}

/* ---- levels ---- */

ptrdiff_t find_levels(const uint32_t *values, size_t count, uint32_t most, uint32_t *levels,
                      uint16_t *codes) {
    enum { SLOTS = 1 << 18 }; /* at most a quarter is taken */
    if (most > 65536) return RUNNING_DAMAGED;
    uint32_t *slots = calloc(SLOTS, sizeof *slots); /* code + 1; 0: free */
    if (!slots) return RUNNING_MEMORY;
    uint32_t found = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = values[i], slot = bits * 0x9E3779B1u >> 14;
        while (slots[slot] && levels[slots[slot] - 1] != bits) slot = (slot + 1) % SLOTS;
        if (!slots[slot]) {
            if (found == most) {
                found++;
                break;
            }
            levels[found++] = bits;
            slots[slot] = found;
        }
        codes[i] = (uint16_t)(slots[slot] - 1);
    }
    free(slots);
    return found;
}

/* ---- groups ---- */

/* Put the columns of a row, one at least, into groups, by level. Returns the group behind the last,
 * or 0 where they would go on behind `end`. */
static size_t group_row(const uint16_t *columns, const uint8_t *symbols, size_t count,
                        uint32_t levels, uint32_t width, uint32_t none, size_t group, size_t end,
                        uint16_t *columns_out, uint8_t *codes_out) {
    /* Two histograms: the same level twice in a row must not wait for itself. */
    uint32_t found[2][MOST_SMALL];
    uint16_t *next[MOST_SMALL];
    size_t needed = group;
    memset(found[0], 0, levels * sizeof **found);
    memset(found[1], 0, levels * sizeof **found);
    for (size_t i = 0; i < count; i++) found[i & 1][symbols[i]]++;
    for (uint32_t level = 0; level < levels; level++)
        needed += (found[0][level] + found[1][level] + width - 1) / width;
    if (needed > end) return 0;
    for (uint32_t level = 0; level < levels; level++) {
        uint32_t groups = (found[0][level] + found[1][level] + width - 1) / width;
        next[level] = columns_out + group * width;
        memset(codes_out + group, (int)level, groups);
        group += groups;
        /* A group's last places may stay empty. */
        for (uint32_t place = 1; groups && place < width; place++)
            columns_out[group * width - place] = (uint16_t)none;
    }
    for (size_t i = 0; i < count; i++) *next[symbols[i]]++ = columns[i];
    return needed;
}

/* Where groups go. */
typedef struct {
    const quantized *to;
    uint16_t *columns;
    uint8_t *codes;
    uint32_t *ends;
    uint32_t first_row, last_row;
} grouping;

/* The row under work has no more entries. */
static int end_row(row_state *state, const grouping *g) {
    if (state->row >= g->first_row && state->row < g->last_row) {
        if (state->held) {
            size_t next = group_row(state->columns, state->symbols, (size_t)state->held,
                                    g->to->levels, g->to->width, g->to->cols,
                                    (size_t)state->groups, g->to->groups, g->columns, g->codes);
            if (!next) return RUNNING_DAMAGED;
            state->groups = next;
        }
        g->ends[state->row - g->first_row] = (uint32_t)state->groups;
    }
    state->held = 0;
    state->row++;
    return RUNNING_OK;
}

/* See `add_entries`. */
static inline int group_entries(const uint8_t *steps, const uint8_t *codes, size_t entries,
                                const digits_of *table, const uint32_t per_byte, uint32_t behind,
                                row_state *state, const grouping *g) {
    const uint32_t cols = g->to->cols;
    uint16_t *const columns = state->columns;
    uint8_t *const symbols = state->symbols;
    size_t held = (size_t)state->held;
#define ENTRY(found)                                                                           \
    do {                                                                                       \
        const uint32_t symbol = (found);                                                       \
        behind += steps[i] + 1u;                                                               \
        while (behind > cols) {                                                                \
            behind -= cols;                                                                    \
            state->held = held;                                                                \
            if (end_row(state, g)) return RUNNING_DAMAGED;                                     \
            if (state->row >= g->last_row) return RUNNING_OK;                                  \
            held = 0;                                                                          \
        }                                                                                      \
        columns[held] = (uint16_t)(behind - 1);                                                \
        symbols[held] = (uint8_t)symbol;                                                       \
        held += symbol != 0;                                                                   \
    } while (0)
    FOR_ENTRIES(ENTRY);
#undef ENTRY
    state->held = held;
    return RUNNING_OK;
}

int group_packed(const uint8_t *steps, const uint8_t *codes, size_t entries, uint32_t per_byte,
                 uint64_t first, size_t cells, uint32_t first_row, uint32_t last_row, int finish,
                 row_state *state, const quantized *to, uint16_t *columns, uint8_t *codes_out,
                 uint32_t *ends) {
    digits_of table;
    const grouping g = {to, columns, codes_out, ends, first_row, last_row};
    int error = to->levels > MOST_SMALL
                    ? RUNNING_DAMAGED
                    : open_chunk(steps, codes, entries, per_byte, to->levels, cells, to->cols, &table);
    if (error) return error;
    while (!error && state->row < first / to->cols && state->row < last_row)
        error = end_row(state, &g);
    uint32_t col = (uint32_t)(first % to->cols);
    if (error || state->held > col) return RUNNING_DAMAGED;
    if (state->row == first / to->cols && state->row < last_row) {
#define GROUP(per_byte) group_entries(steps, codes, entries, &table, per_byte, col, state, &g)
        switch (per_byte) {
        case 0: error = GROUP(0); break;
        case 1: error = GROUP(1); break;
        case 2: error = GROUP(2); break;
        case 3: error = GROUP(3); break;
        default: error = GROUP(4); break;
        }
#undef GROUP
    } else if (state->row < last_row) {
        error = RUNNING_DAMAGED; /* the chunks are not in order */
    }
    while (!error && finish && state->row < last_row) error = end_row(state, &g);
    return error;
}

void count_groups(const quantized *from, uint32_t first, uint32_t last, uint32_t *counts) {
    const uint8_t *codes = from->codes;
    for (uint32_t row = first; row < last; row++) {
        uint32_t found[2][MOST_SMALL], *out = counts + 4 * (size_t)row;
        memset(found[0], 0, from->levels * sizeof **found);
        memset(found[1], 0, from->levels * sizeof **found);
        for (size_t i = from->starts[row]; i < from->starts[row + 1]; i++) found[i & 1][codes[i]]++;
        memset(out, 0, 4 * sizeof *out);
        for (uint32_t level = 0; level < from->levels; level++) {
            uint32_t number = found[0][level] + found[1][level];
            for (uint32_t log = 0; log < 4; log++) out[log] += (number + (1u << log) - 1) >> log;
        }
    }
}

int fill_groups(const quantized *from, uint32_t first, uint32_t last, const quantized *to,
                uint16_t *columns, uint8_t *codes) {
    for (uint32_t row = first; row < last; row++) {
        size_t begin = from->starts[row], count = from->starts[row + 1] - begin;
        size_t group = to->starts[row], end = to->starts[row + 1];
        size_t next = count ? group_row(from->columns + begin, (const uint8_t *)from->codes + begin,
                                        count, from->levels, to->width, from->cols, group, end,
                                        columns, codes)
                            : group;
        if (next != end) return RUNNING_DAMAGED;
    }
    return RUNNING_OK;
}

static inline uint32_t code_of(const quantized *q, size_t group) {
    return q->code_bytes == 1 ? ((const uint8_t *)q->codes)[group]
                              : ((const uint16_t *)q->codes)[group];
}

static inline uint32_t bits_of(const quantized *q, size_t group) {
    uint32_t bits;
    if (q->code_bytes == 4)
        memcpy(&bits, (const float *)q->codes + group, sizeof bits);
    else
        memcpy(&bits, q->codebook + code_of(q, group), sizeof bits);
    return bits;
}

/* With `width` a constant the columns of a group are a few vector instructions. The sum of
 * (key + column)^2 is that of the columns and of their squares, with key taken out. */
static inline int examine_rows(const quantized *q, uint32_t first, uint32_t last, uint64_t offset,
                               uint64_t stride, const uint32_t width, uint64_t *weights,
                               uint64_t *digest) {
    const uint64_t none = q->cols;
    uint64_t number = 0, sum = 0;
    for (uint32_t row = first; row < last; row++) {
        if (q->starts[row] > q->starts[row + 1] || q->starts[row + 1] > q->groups)
            return RUNNING_DAMAGED;
        uint64_t key = FIRST_KEY + row * stride + offset;
        for (size_t group = q->starts[row]; group < q->starts[row + 1]; group++) {
            if (q->code_bytes < 4 && code_of(q, group) >= q->levels) return RUNNING_DAMAGED;
            const uint16_t *columns = q->columns + group * width;
            uint32_t columns_sum = 0, empty = 0, outside = 0;
            uint64_t squares = 0;
            for (uint32_t i = 0; i < width; i++) {
                uint32_t column = columns[i];
                columns_sum += column;
                squares += column * column; /* of 16 bits each */
                empty += column == none;
                outside |= column > none;
            }
            if (outside) return RUNNING_DAMAGED;
            uint64_t there = width - empty, hash = hash_of(bits_of(q, group));
            sum += hash * (there * key * key + 2 * key * (columns_sum - empty * none) + squares -
                           empty * none * none);
            number += hash ? there : 0;
        }
    }
    *weights = number;
    *digest = sum;
    return RUNNING_OK;
}

int examine(const quantized *q, uint32_t first, uint32_t last, uint64_t offset, uint64_t stride,
            uint64_t *weights, uint64_t *digest) {
    if (q->starts[0] != 0 || q->starts[q->rows] != q->groups) return RUNNING_DAMAGED;
    switch (q->width) {
    case 1: return examine_rows(q, first, last, offset, stride, 1, weights, digest);
    case 2: return examine_rows(q, first, last, offset, stride, 2, weights, digest);
    case 4: return examine_rows(q, first, last, offset, stride, 4, weights, digest);
    case 8: return examine_rows(q, first, last, offset, stride, 8, weights, digest);
    default: return RUNNING_DAMAGED;
    }
}

void densify(const quantized *q, uint32_t first, uint32_t last, size_t stride, float *out) {
    for (uint32_t row = first; row < last; row++, out += stride) {
        memset(out, 0, q->cols * sizeof *out);
        for (size_t group = q->starts[row]; group < q->starts[row + 1]; group++) {
            uint32_t bits = bits_of(q, group);
            const uint16_t *columns = q->columns + group * q->width;
            for (uint32_t i = 0; i < q->width; i++)
                if (columns[i] < q->cols) memcpy(out + columns[i], &bits, sizeof bits);
        }
    }
}
