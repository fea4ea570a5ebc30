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

/* With `per_byte` and `wide` constants, and all that changes in variables of its own, the loop keeps
 * everything in registers. A symbol 0 is written, too, but the next one takes its place. */
static inline size_t add_entries(const uint8_t *steps, const uint8_t *codes, size_t entries,
                                 const digits_of *table, const uint32_t per_byte, const int wide,
                                 uint32_t col, const uint32_t cols, list to) {
    size_t count = 0, row_start = 0;
    for (size_t i = 0; i < entries;) {
        const size_t end = per_byte && entries - i > per_byte ? i + per_byte : per_byte ? entries : i + 1;
        const uint8_t *digits = table->digits[per_byte ? *codes++ : 0];
        for (; i < end; i++) {
            uint32_t symbol = per_byte ? *digits++ : codes[i] | (uint32_t)codes[entries + i] << 8;
            col += steps[i];
            while (col >= cols) {
                col -= cols;
                *to.counts++ = (uint32_t)(count - row_start);
                row_start = count;
            }
            to.columns[count] = (uint16_t)col++;
            if (wide)
                ((uint16_t *)to.symbols)[count] = (uint16_t)symbol;
            else
                ((uint8_t *)to.symbols)[count] = (uint8_t)symbol;
            count += symbol != 0;
        }
    }
    *to.counts = (uint32_t)(count - row_start);
    return count;
}

int list_packed(const uint8_t *steps, const uint8_t *codes, size_t entries, uint32_t per_byte,
                uint32_t symbols, uint64_t first, size_t cells, uint32_t cols, uint16_t *columns,
                void *listed, uint32_t *counts, size_t *count) {
    digits_of table;
    uint32_t powers = 1, largest = 0;
    uint64_t needed = entries;

    if (per_byte > 4 || symbols == 0 || symbols > 65536 || cols == 0 || cols > MOST_COLUMNS ||
        cells == 0)
        return RUNNING_DAMAGED;
    for (uint32_t i = 0; i < per_byte; i++)
        if ((powers *= symbols) > 256) return RUNNING_DAMAGED;
    for (uint32_t code = 0; per_byte && code < powers; code++)
        for (uint32_t i = 0, rest = code; i < per_byte; i++, rest /= symbols)
            table.digits[code][i] = (uint8_t)(rest % symbols);
    if (per_byte == 0) {
        for (size_t i = 0; i < entries; i++)
            if ((codes[i] | (uint32_t)codes[entries + i] << 8) >= symbols) return RUNNING_DAMAGED;
    } else {
        for (size_t i = 0; i < (entries + per_byte - 1) / per_byte; i++)
            largest = codes[i] > largest ? codes[i] : largest;
        if (largest >= powers) return RUNNING_DAMAGED;
    }
    for (size_t i = 0; i < entries; i++) needed += steps[i];
    if (needed > cells) return RUNNING_DAMAGED;

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

void count_groups(const quantized *from, uint32_t first, uint32_t last, uint32_t *counts) {
    const uint8_t *codes = from->codes;
    for (uint32_t row = first; row < last; row++) {
        /* Two histograms: the same level twice in a row must not wait for itself. */
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
    const uint8_t *listed = from->codes;
    const uint32_t width = to->width;
    for (uint32_t row = first; row < last; row++) {
        size_t begin = from->starts[row], end = from->starts[row + 1];
        uint32_t found[2][MOST_SMALL];
        uint16_t *next[MOST_SMALL];
        size_t group = to->starts[row], needed = group;
        memset(found[0], 0, from->levels * sizeof **found);
        memset(found[1], 0, from->levels * sizeof **found);
        for (size_t i = begin; i < end; i++) found[i & 1][listed[i]]++;
        for (uint32_t level = 0; level < from->levels; level++)
            needed += (found[0][level] + found[1][level] + width - 1) / width;
        if (needed != to->starts[row + 1]) return RUNNING_DAMAGED;
        for (uint32_t level = 0; level < from->levels; level++) {
            uint32_t groups = (found[0][level] + found[1][level] + width - 1) / width;
            next[level] = columns + group * width;
            for (uint32_t i = 0; i < groups; i++) codes[group++] = (uint8_t)level;
            /* A group's last places may stay empty. */
            for (uint32_t i = 1; groups && i < width; i++)
                columns[group * width - i] = (uint16_t)from->cols;
        }
        for (size_t i = begin; i < end; i++) *next[listed[i]]++ = from->columns[i];
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

int examine(const quantized *q, uint32_t first, uint32_t last, uint64_t offset, uint64_t stride,
            uint64_t *weights, uint64_t *digest) {
    uint64_t number = 0, sum = 0;
    if (q->starts[0] != 0 || q->starts[q->rows] != q->groups) return RUNNING_DAMAGED;
    for (uint32_t row = first; row < last; row++) {
        if (q->starts[row] > q->starts[row + 1] || q->starts[row + 1] > q->groups)
            return RUNNING_DAMAGED;
        uint64_t key = FIRST_KEY + row * stride + offset;
        for (size_t group = q->starts[row]; group < q->starts[row + 1]; group++) {
            if (q->code_bytes < 4 && code_of(q, group) >= q->levels) return RUNNING_DAMAGED;
            uint64_t hash = hash_of(bits_of(q, group)), squares = 0;
            const uint16_t *columns = q->columns + group * q->width;
            for (uint32_t i = 0; i < q->width; i++) {
                uint64_t position = key + columns[i];
                if (columns[i] > q->cols) return RUNNING_DAMAGED;
                if (columns[i] == q->cols) continue;
                squares += position * position;
                number += hash != 0;
            }
            sum += squares * hash;
        }
    }
    *weights = number;
    *digest = sum;
    return RUNNING_OK;
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
