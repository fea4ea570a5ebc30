/* From decoded streams to matrices of few different weights, and what is checked of these. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>

#include "../../codecs/native/digest.h"
#include "running.h"

/* ---- packed ---- */

/* Entries whose symbols are unpacked at a time: whole codes, however many a code has. */
enum { BLOCK = 3072 };

/* The symbol of each code, `per_byte` of them. */
typedef struct {
    uint8_t digits[256][4];
} digits_of;

/* Symbols of a block: of one byte each, or of two. A few more places are written. */
typedef union {
    uint8_t narrow[BLOCK + 4];
    uint16_t wide[BLOCK];
} symbols_of;

/* The symbols of `count` entries from `start` on. */
static void unpack(const chunk *from, const digits_of *table, size_t start, size_t count, int wide,
                   symbols_of *symbols) {
    const uint8_t *low = from->codes + start, *high = low + from->entries;
    if (from->per_byte == 0) {
        for (size_t i = 0; i < count && wide; i++) symbols->wide[i] = (uint16_t)(low[i] | high[i] << 8);
        for (size_t i = 0; i < count && !wide; i++) symbols->narrow[i] = low[i];
        return;
    }
    const uint8_t *code = from->codes + start / from->per_byte;
    for (size_t i = 0; i < count; i += from->per_byte)
        memcpy(symbols->narrow + i, table->digits[*code++], sizeof *table->digits);
}

/* Four entries at once, if none is of symbol 0 and all are in the row: their columns are sums of
 * steps in 16 bits each, all within one product. */
static inline int take_four(const uint8_t *steps, const uint8_t *symbols, int32_t *end,
                            int32_t cols, uint16_t *columns, uint8_t *found) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    const uint64_t ones = 0x0001000100010001u;
    uint32_t four, there;
    memcpy(&four, steps, sizeof four);
    memcpy(&there, symbols, sizeof there);
    uint64_t apart = (four | (uint64_t)four << 16) & 0x0000FFFF0000FFFFu;
    apart = (apart | apart << 8) & 0x00FF00FF00FF00FFu;
    uint64_t sums = apart * ones + 0x0003000200010000u;
    int32_t next = *end + (int32_t)(sums >> 48) + 1;
    if (((there - 0x01010101u) & ~there & 0x80808080u) != 0 || next > cols || *end < 0) return 0;
    sums += ones * (uint64_t)*end;
    memcpy(columns, &sums, sizeof sums);
    memcpy(found, &there, sizeof there);
    *end = next;
    return 1;
#else
    (void)steps, (void)symbols, (void)end, (void)cols, (void)columns, (void)found;
    return 0;
#endif
}

/* Take entries from `i` on into a row, to its end or that of the block; returns where that is.
 * `behind` is the column behind the last entry's. A symbol 0 is written, too, but the next one takes
 * its place. */
static inline __attribute__((always_inline)) size_t take(const uint8_t *steps,
                                                         const symbols_of *symbols, size_t i,
                                                         size_t count, int32_t *behind,
                                                         int32_t cols, uint16_t *columns,
                                                         void *found, const int wide,
                                                         size_t *held) {
    int32_t end = *behind;
    size_t place = *held;
    uint8_t *narrow = found;
    uint16_t *two_bytes = found;
    while (i < count) {
        if (!wide && i + 4 <= count &&
            take_four(steps + i, symbols->narrow + i, &end, cols, columns + place, narrow + place)) {
            i += 4;
            place += 4;
            continue;
        }
        int32_t next = end + steps[i] + 1;
        if (next > cols) break;
        end = next;
        uint32_t symbol = wide ? symbols->wide[i] : symbols->narrow[i];
        columns[place] = (uint16_t)(end - 1);
        if (wide)
            two_bytes[place] = (uint16_t)symbol;
        else
            narrow[place] = (uint8_t)symbol;
        place += symbol != 0;
        i++;
    }
    *behind = end;
    *held = place;
    return i;
}

/* Check that a chunk's entries are what they should be, and make its table. */
static int open_chunk(const chunk *from, digits_of *table) {
    const uint8_t *codes = from->codes, *steps = from->steps;
    const size_t entries = from->entries;
    const uint32_t per_byte = from->per_byte, symbols = from->symbols;
    uint32_t powers = 1, largest = 0;
    uint64_t needed = entries;

    if (per_byte > 4 || symbols == 0 || symbols > 65536 || from->cols == 0 ||
        from->cols > MOST_COLUMNS || from->cells == 0)
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
    return needed > from->cells ? RUNNING_DAMAGED : RUNNING_OK;
}

int list_packed(const chunk *from, uint16_t *columns, void *listed, uint32_t *counts,
                size_t *count) {
    const uint64_t first = from->first;
    const uint32_t cols = from->cols;
    const int wide = from->symbols > MOST_SMALL;
    digits_of table;
    symbols_of block;
    int error = open_chunk(from, &table);
    if (error) return error;
    uint64_t rows = (first + from->cells - 1) / cols - first / cols + 1;
    memset(counts, 0, (size_t)rows * sizeof *counts);
    int32_t behind = (int32_t)(first % cols);
    size_t held = 0, row_start = 0;
    for (size_t start = 0; start < from->entries; start += BLOCK) {
        size_t there = from->entries - start < BLOCK ? from->entries - start : BLOCK;
        unpack(from, &table, start, there, wide, &block);
#define TAKE(wide) \
    take(from->steps + start, &block, i, there, &behind, (int32_t)cols, columns, listed, wide, &held)
        for (size_t i = 0; (i = wide ? TAKE(1) : TAKE(0)) < there;) {
            behind -= (int32_t)cols;
            *counts++ = (uint32_t)(held - row_start);
            row_start = held;
        }
#undef TAKE
    }
    *counts = (uint32_t)(held - row_start);
    *count = held;
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

/* Of each level: how often it occurs in each quarter of a row. */
typedef uint32_t histogram[4][MOST_SMALL];

/* Quarters, as the same level twice in a row must not wait for itself. */
static void count_levels(const uint8_t *symbols, size_t count, uint32_t levels, histogram found) {
    const size_t quarter = count / 4;
    const uint8_t *second = symbols + quarter, *third = second + quarter, *last = third + quarter;
    for (uint32_t i = 0; i < 4; i++) memset(found[i], 0, levels * sizeof **found);
    for (size_t i = 0; i < quarter; i++) {
        found[0][symbols[i]]++;
        found[1][second[i]]++;
        found[2][third[i]]++;
        found[3][last[i]]++;
    }
    for (size_t i = quarter; last + i < symbols + count; i++) found[3][last[i]]++;
}

static inline uint32_t in_all(const histogram found, uint32_t level) {
    return found[0][level] + found[1][level] + found[2][level] + found[3][level];
}

/* Put the columns of a row, one at least, into groups, by level. Returns the group behind the last,
 * or 0 where they would go on behind `end`. */
static size_t group_row(const uint16_t *columns, const uint8_t *symbols, size_t count,
                        uint32_t levels, uint32_t width, uint32_t none, size_t group, size_t end,
                        uint16_t *columns_out, uint8_t *codes_out) {
    histogram next; /* first what there is, then the place of the next one */
    uint32_t groups = 0;
    count_levels(symbols, count, levels, next);
    for (uint32_t level = 0; level < levels; level++)
        groups += (in_all(next, level) + width - 1) / width;
    if (groups > end - group) return 0;
    columns_out += group * width;
    codes_out += group;
    groups = 0;
    for (uint32_t level = 0; level < levels; level++) {
        uint32_t place = groups * width, more = (in_all(next, level) + width - 1) / width;
        memset(codes_out + groups, (int)level, more);
        groups += more;
        for (uint32_t quarter = 0; quarter < 4; quarter++) {
            uint32_t there = next[quarter][level];
            next[quarter][level] = place;
            place += there;
        }
        /* A group's last places may stay empty. */
        while (place < groups * width) columns_out[place++] = (uint16_t)none;
    }
#define PLACE(quarter, i) columns_out[next[quarter][symbols[i]]++] = columns[i]
    const size_t quarter = count / 4;
    for (size_t i = 0; i < quarter; i++) {
        PLACE(0, i);
        PLACE(1, i + quarter);
        PLACE(2, i + 2 * quarter);
        PLACE(3, i + 3 * quarter);
    }
    for (size_t i = 4 * quarter; i < count; i++) PLACE(3, i);
#undef PLACE
    return group + groups;
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
            size_t next = group_row(state->columns, state->symbols, state->held,
                                    g->to->levels, g->to->width, g->to->cols,
                                    state->groups, g->to->groups, g->columns, g->codes);
            if (!next) return RUNNING_DAMAGED;
            state->groups = next;
        }
        g->ends[state->row - g->first_row] = (uint32_t)state->groups;
    }
    state->held = 0;
    state->row++;
    return RUNNING_OK;
}

static int group_entries(const chunk *from, const digits_of *table, row_state *state,
                         const grouping *g) {
    const int32_t cols = (int32_t)from->cols;
    int32_t behind = (int32_t)(from->first % from->cols);
    symbols_of block;
    for (size_t start = 0; start < from->entries; start += BLOCK) {
        size_t there = from->entries - start < BLOCK ? from->entries - start : BLOCK;
        unpack(from, table, start, there, 0, &block);
        for (size_t i = 0; (i = take(from->steps + start, &block, i, there, &behind, cols,
                                     state->columns, state->symbols, 0, &state->held)) < there;) {
            behind -= cols;
            if (end_row(state, g)) return RUNNING_DAMAGED;
            if (state->row >= g->last_row) return RUNNING_OK;
        }
    }
    return RUNNING_OK;
}

int group_packed(const chunk *from, uint32_t first_row, uint32_t last_row, int finish,
                 row_state *state, const quantized *to, uint16_t *columns, uint8_t *codes,
                 uint32_t *ends) {
    digits_of table;
    const grouping g = {to, columns, codes, ends, first_row, last_row};
    if (to->levels > MOST_SMALL || from->symbols != to->levels || from->cols != to->cols)
        return RUNNING_DAMAGED;
    int error = open_chunk(from, &table);
    if (error) return error;
    const uint64_t row = from->first / from->cols;
    while (!error && state->row < row && state->row < last_row) error = end_row(state, &g);
    if (error || state->held > from->first % from->cols) return RUNNING_DAMAGED;
    if (state->row < last_row)
        /* Otherwise the chunks are not in order. */
        error = state->row == row ? group_entries(from, &table, state, &g) : RUNNING_DAMAGED;
    while (!error && finish && state->row < last_row) error = end_row(state, &g);
    return error;
}

void count_groups(const quantized *from, uint32_t first, uint32_t last, uint32_t *counts) {
    const uint8_t *codes = from->codes;
    for (uint32_t row = first; row < last; row++) {
        histogram found;
        uint32_t *out = counts + 4 * (size_t)row, begin = from->starts[row];
        count_levels(codes + begin, from->starts[row + 1] - begin, from->levels, found);
        memset(out, 0, 4 * sizeof *out);
        for (uint32_t level = 0; level < from->levels; level++) {
            uint32_t number = in_all(found, level);
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

/* Groups of one code, `count` columns in all, of which some may be empty places. The sum of
 * (key + column)^2 is that of the columns and of their squares, with key taken out. */
static inline __attribute__((always_inline)) int examine_run(const uint16_t *columns, size_t count,
                                                             uint32_t cols, uint64_t key,
                                                             uint64_t hash, uint64_t *weights,
                                                             uint64_t *digest) {
    const uint64_t none = cols;
    uint64_t sum = 0, squares = 0, empty = 0;
    uint32_t outside = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t column = columns[i];
        sum += column;
        squares += column * column; /* of 16 bits each */
        empty += column == cols;
        outside |= column > cols;
    }
    if (outside) return RUNNING_DAMAGED;
    uint64_t there = count - empty;
    *digest += hash * (there * key * key + 2 * key * (sum - empty * none) + squares -
                       empty * none * none);
    *weights += hash ? there : 0;
    return RUNNING_OK;
}

static inline __attribute__((always_inline)) int examine_rows(const quantized *q, uint32_t first,
                                                              uint32_t last, uint64_t offset,
                                                              uint64_t stride, uint64_t *weights,
                                                              uint64_t *digest) {
    const uint32_t width = q->width;
    *weights = *digest = 0;
    if (q->starts[0] != 0 || q->starts[q->rows] != q->groups ||
        (width != 1 && width != 2 && width != 4 && width != 8))
        return RUNNING_DAMAGED;
    for (uint32_t row = first; row < last; row++) {
        size_t group = q->starts[row], end = q->starts[row + 1];
        if (group > end || end > q->groups) return RUNNING_DAMAGED;
        uint64_t key = FIRST_KEY + row * stride + offset;
        while (group < end) {
            if (q->code_bytes < 4 && code_of(q, group) >= q->levels) return RUNNING_DAMAGED;
            size_t run = group + 1;
            uint32_t bits = bits_of(q, group);
            if (q->code_bytes == 1)
                while (run < end && code_of(q, run) == code_of(q, group)) run++;
            if (examine_run(q->columns + group * width, (run - group) * width, q->cols, key,
                            hash_of(bits), weights, digest))
                return RUNNING_DAMAGED;
            group = run;
        }
    }
    return RUNNING_OK;
}

#if defined(__x86_64__) && defined(__GNUC__)
static __attribute__((target("avx2"))) int examine_avx2(const quantized *q, uint32_t first,
                                                        uint32_t last, uint64_t offset,
                                                        uint64_t stride, uint64_t *weights,
                                                        uint64_t *digest) {
    return examine_rows(q, first, last, offset, stride, weights, digest);
}
#endif

int examine(const quantized *q, uint32_t first, uint32_t last, uint64_t offset, uint64_t stride,
            uint64_t *weights, uint64_t *digest) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (instruction_set() >= AVX2)
        return examine_avx2(q, first, last, offset, stride, weights, digest);
#endif
    return examine_rows(q, first, last, offset, stride, weights, digest);
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
