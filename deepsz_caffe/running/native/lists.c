/* From decoded streams to matrices of few different weights. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>

#include "running.h"

/* Whether bytes stand in memory so that the first is the lowest. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
enum { LOWEST_FIRST = 1 };
#else
enum { LOWEST_FIRST = 0 };
#endif

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
    if (from->per_byte == 2 && LOWEST_FIRST) {
        /* Quotients by 16 bits' arithmetic, right for all codes as there are at most 16 symbols. */
        const uint32_t inverse = 65536 / from->symbols + 1;
        for (size_t i = 0; i < (count + 1) / 2; i++) {
            uint16_t quotient = (uint16_t)(code[i] * inverse >> 16);
            uint16_t rest = (uint16_t)(code[i] - quotient * from->symbols);
            symbols->wide[i] = (uint16_t)(rest | quotient << 8);
        }
        return;
    }
    for (size_t i = 0; i < count; i += from->per_byte)
        memcpy(symbols->narrow + i, table->digits[*code++], sizeof *table->digits);
}

/* Columns of four entries at once, sums of steps in 16 bits each, all within one product; returns the
 * column behind the last. `end`, the one behind the entry before, is not negative. */
static inline int32_t four_columns(const uint8_t *steps, int32_t end, uint64_t *columns) {
    const uint64_t ones = 0x0001000100010001u;
    uint32_t four;
    memcpy(&four, steps, sizeof four);
    uint64_t apart = (four | (uint64_t)four << 16) & 0x0000FFFF0000FFFFu;
    apart = (apart | apart << 8) & 0x00FF00FF00FF00FFu;
    uint64_t sums = apart * ones + 0x0003000200010000u;
    *columns = sums + ones * (uint64_t)end;
    return end + (int32_t)(sums >> 48) + 1;
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
    for (size_t start = 0; start < entries; start += 256) {
        size_t end = entries - start < 256 ? entries : start + 256;
        uint16_t sum = 0; /* in 16 bits it takes a third of the time */
        for (size_t i = start; i < end; i++) sum = (uint16_t)(sum + steps[i]);
        needed += sum;
    }
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

/* The columns of the row under work, by level: `room` places for each level. Levels begin in lines
 * of the cache that don't displace each other. */
typedef struct {
    uint16_t *columns;
    uint16_t *next[MOST_SMALL]; /* where each level's next column goes */
    uint32_t levels;
    size_t room;
} buckets;

size_t bucket_room(uint32_t cols) { return ((size_t)cols + WIDEST + 31) / 32 * 32 | 32; }

static void open_buckets(buckets *row, uint16_t *columns, uint32_t levels, uint32_t cols) {
    row->columns = columns;
    row->levels = levels;
    row->room = bucket_room(cols);
    for (uint32_t level = 0; level < levels; level++) row->next[level] = columns + level * row->room;
}

/* Where groups go: `end` of them have room. */
typedef struct {
    uint16_t *columns;
    uint8_t *codes;
    size_t group, end;
    uint32_t width, none; /* what stands for no column */
} grouping;

/* Whole groups at a time: what a copy's last bytes are too many, the next one overwrites. */
static inline __attribute__((always_inline)) void put_groups(grouping *to, uint16_t *columns,
                                                             uint32_t level, size_t count,
                                                             const uint32_t width) {
    const size_t groups = (count + width - 1) / width;
    uint16_t *out = to->columns + to->group * width;
    /* A group's last places may stay empty. */
    for (size_t i = count; i < groups * width; i++) columns[i] = (uint16_t)to->none;
    for (size_t i = 0; i < groups * width; i++) out[i] = columns[i];
    for (size_t i = 0; i < groups; i++) to->codes[to->group + i] = (uint8_t)level;
    to->group += groups;
}

/* Put the row's columns into groups, by level from `first` on, and forget them. */
static int close_buckets(buckets *row, uint32_t first, grouping *to) {
    size_t counts[MOST_SMALL], groups = 0;
    for (uint32_t level = 0; level < row->levels; level++) {
        uint16_t *start = row->columns + level * row->room;
        counts[level] = (size_t)(row->next[level] - start);
        row->next[level] = start;
        if (level >= first) groups += (counts[level] + to->width - 1) / to->width;
    }
    if (groups > to->end - to->group) return RUNNING_DAMAGED;
    for (uint32_t level = first; level < row->levels; level++) {
        uint16_t *columns = row->next[level];
        switch (to->width) {
            case 8: put_groups(to, columns, level, counts[level], 8); break;
            case 4: put_groups(to, columns, level, counts[level], 4); break;
            default: put_groups(to, columns, level, counts[level], to->width);
        }
    }
    return RUNNING_OK;
}

/* Take entries from `i` on into a row, to its end or that of the block; returns where that is.
 * `behind` is the column behind the last entry's. */
static size_t take_into(buckets *row, const uint8_t *steps, const uint8_t *symbols, size_t i,
                        size_t count, int32_t *behind, int32_t cols) {
    int32_t end = *behind;
#define PUT(symbol, column) *row->next[symbol]++ = (uint16_t)(column)
    while (i < count) {
        uint64_t four;
        int32_t next;
        if (LOWEST_FIRST && i + 4 <= count && end >= 0 &&
            (next = four_columns(steps + i, end, &four)) <= cols) {
            PUT(symbols[i], four);
            PUT(symbols[i + 1], four >> 16);
            PUT(symbols[i + 2], four >> 32);
            PUT(symbols[i + 3], four >> 48);
            end = next;
            i += 4;
            continue;
        }
        next = end + steps[i] + 1;
        if (next > cols) break;
        end = next;
        PUT(symbols[i], end - 1);
        i++;
    }
#undef PUT
    *behind = end;
    return i;
}

/* Where the groups of some rows go. */
typedef struct {
    grouping to;
    uint32_t *ends, first_row, last_row;
} grouped_rows;

/* The row under work has no more entries. */
static int end_row(buckets *row, row_state *state, grouped_rows *rows) {
    /* Rows before the first are only passed; symbol 0 is none. */
    uint32_t first = state->row < rows->first_row ? row->levels : 1;
    if (close_buckets(row, first, &rows->to)) return RUNNING_DAMAGED;
    if (state->row >= rows->first_row)
        rows->ends[state->row - rows->first_row] = (uint32_t)rows->to.group;
    state->row++;
    return RUNNING_OK;
}

static int group_entries(const chunk *from, const digits_of *table, buckets *row, row_state *state,
                         grouped_rows *rows) {
    const int32_t cols = (int32_t)from->cols;
    int32_t behind = (int32_t)(from->first % from->cols);
    symbols_of block;
    for (size_t start = 0; start < from->entries; start += BLOCK) {
        size_t there = from->entries - start < BLOCK ? from->entries - start : BLOCK;
        const uint8_t *symbols = from->codes + start;
        if (from->per_byte != 1) {
            unpack(from, table, start, there, 0, &block);
            symbols = block.narrow;
        }
        for (size_t i = 0; (i = take_into(row, from->steps + start, symbols, i, there, &behind,
                                          cols)) < there;) {
            behind -= cols;
            if (end_row(row, state, rows)) return RUNNING_DAMAGED;
            if (state->row >= rows->last_row) return RUNNING_OK;
        }
    }
    return RUNNING_OK;
}

int group_packed(const chunk *from, uint32_t first_row, uint32_t last_row, int finish,
                 row_state *state, const quantized *to, uint16_t *columns, uint8_t *codes,
                 uint32_t *ends) {
    digits_of table;
    buckets row;
    grouped_rows rows = {{columns, codes, (size_t)state->groups, to->groups, to->width, to->cols},
                         ends, first_row, last_row};
    if (to->levels > MOST_SMALL || from->symbols != to->levels || from->cols != to->cols)
        return RUNNING_DAMAGED;
    int error = open_chunk(from, &table);
    if (error) return error;
    open_buckets(&row, state->columns, to->levels, to->cols);
    const uint64_t wanted = from->first / from->cols, before = from->first % from->cols;
    uint64_t held = 0;
    for (uint32_t level = 0; level < to->levels; level++) {
        if (state->held[level] > to->cols) return RUNNING_DAMAGED;
        row.next[level] += state->held[level];
        held += state->held[level];
    }
    while (!error && state->row < wanted && state->row < last_row) {
        error = end_row(&row, state, &rows);
        held = 0;
    }
    if (error || held > before) return RUNNING_DAMAGED;
    if (state->row < last_row)
        /* Otherwise the chunks are not in order. */
        error = state->row == wanted ? group_entries(from, &table, &row, state, &rows)
                                     : RUNNING_DAMAGED;
    while (!error && finish && state->row < last_row) error = end_row(&row, state, &rows);
    for (uint32_t level = 0; level < to->levels; level++)
        state->held[level] = (uint64_t)(row.next[level] - (row.columns + level * row.room));
    state->groups = rows.to.group;
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
    buckets row;
    const uint8_t *symbols = from->codes;
    uint16_t *memory = malloc(from->levels * bucket_room(from->cols) * sizeof *memory + 1);
    int error = memory ? RUNNING_OK : RUNNING_MEMORY;
    if (memory) open_buckets(&row, memory, from->levels, from->cols);
    for (uint32_t number = first; number < last && !error; number++) {
        size_t begin = from->starts[number], end = from->starts[number + 1];
        grouping out = {columns, codes, to->starts[number], to->starts[number + 1], to->width,
                        from->cols};
        if (begin > end || end - begin > from->cols || out.group > out.end || out.end > to->groups) {
            error = RUNNING_DAMAGED;
            break;
        }
        for (size_t i = begin; i < end; i++) *row.next[symbols[i]]++ = from->columns[i];
        error = close_buckets(&row, 0, &out);
        if (!error && out.group != out.end) error = RUNNING_DAMAGED;
    }
    free(memory);
    return error;
}
