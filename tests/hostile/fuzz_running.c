/* Feeds the kernels of `running` random and damaged matrices, under sanitizers: `make fuzz-kernels`.
 *
 * Every array is allocated at its exact size, so that one byte beyond it ends the run. A matrix that
 * `examine` accepts must be safe to use; one that `fill_groups` made must be the one it was made of.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../deepsz_caffe/running/native/running.h"

static uint64_t state = 0x9E3779B97F4A7C15u;

static uint32_t below(uint32_t limit) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % limit;
}

static void *block(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) abort();
    return memory;
}

static void fill(void *bytes, size_t count, uint32_t limit) {
    for (size_t i = 0; i < count; i++) ((uint8_t *)bytes)[i] = (uint8_t)below(limit);
}

/* All instruction sets must give the same bits, and what the dense matrix gives. */
static void use(const quantized *q, const float *dense) {
    size_t batch = 1 + below(36);
    float *x = block(4 * batch * q->cols), *y = block(4 * batch * q->rows);
    float *bias = block(4 * (size_t)q->rows), *first = block(4 * batch * q->rows);
    for (size_t i = 0; i < batch * q->cols; i++) x[i] = (float)below(64) - 32;
    for (uint32_t i = 0; i < q->rows; i++) bias[i] = (float)below(64);
    uint32_t middle = below(q->rows + 1);
    for (int set = PORTABLE; set <= instruction_set(); set++) {
        memset(y, 0, 4 * batch * q->rows);
        if (multiply(q, 0, middle, x, batch, q->cols, bias, y, q->rows, 0, set) ||
            multiply(q, middle, q->rows, x, batch, q->cols, bias, y, q->rows, 0, set))
            abort();
        if (set == PORTABLE)
            memcpy(first, y, 4 * batch * q->rows);
        else if (memcmp(first, y, 4 * batch * q->rows))
            abort();
    }
    /* Small integers: every sum is exact. */
    for (size_t i = 0; dense && i < batch; i++)
        for (uint32_t row = 0; row < q->rows; row++) {
            float sum = bias[row];
            for (uint32_t col = 0; col < q->cols; col++)
                sum += dense[(size_t)row * q->cols + col] * x[i * q->cols + col];
            if (sum != first[i * q->rows + row]) abort();
        }
    multiply(q, 0, q->rows, x, batch, q->cols, NULL, y, q->rows, 1, PORTABLE);
    free(x), free(y), free(bias), free(first);
}

static void fuzz_groups(void) {
    uint32_t rows = 1 + below(9), cols = 1 + below(300), levels = 1 + below(below(2) ? 5 : 256);
    uint32_t density = 1 + below(100);
    float *dense = block(4 * (size_t)rows * cols), *codebook = block(4 * levels);
    for (uint32_t i = 0; i < levels; i++) codebook[i] = (float)i + 1;
    uint32_t *starts = block(4 * (rows + 1)), *counts = block(16 * (size_t)rows);
    size_t room = (size_t)rows * cols, count = 0;
    uint8_t *all = block(room);
    uint16_t *places = block(2 * room);
    for (uint32_t row = 0; row < rows; row++) {
        starts[row] = (uint32_t)count;
        for (uint32_t col = 0; col < cols; col++) {
            float *cell = dense + (size_t)row * cols + col;
            *cell = 0;
            if (below(100) >= density) continue;
            all[count] = (uint8_t)below(levels);
            *cell = codebook[all[count]];
            places[count++] = (uint16_t)col;
        }
    }
    starts[rows] = (uint32_t)count;
    uint8_t *codes = block(count);
    uint16_t *columns = block(2 * count);
    memcpy(codes, all, count);
    memcpy(columns, places, 2 * count);
    quantized q = {rows, cols, 1, 1, levels, count, starts, columns, codes, codebook};
    uint64_t weights, digest, same;
    if (examine(&q, 0, rows, 3, cols + 5, &weights, &digest) || weights != count) abort();
    use(&q, dense);
    count_groups(&q, 0, rows, counts);
    for (uint32_t log = 0; log < 4; log++) {
        uint32_t *ends = block(4 * (rows + 1));
        ends[0] = 0;
        for (uint32_t row = 0; row < rows; row++) ends[row + 1] = ends[row] + counts[4 * row + log];
        size_t groups = ends[rows];
        uint8_t *codes_of = block(groups);
        uint16_t *columns_of = block((2 * groups) << log);
        quantized to = {rows, cols, 1u << log, 1, levels, groups, ends, columns_of, codes_of, codebook};
        if (fill_groups(&q, 0, rows, &to, columns_of, codes_of)) abort();
        if (examine(&to, 0, rows, 3, cols + 5, &weights, &same) || weights != count || same != digest)
            abort();
        float *back = block(4 * room);
        densify(&to, 0, rows, cols, back);
        if (memcmp(back, dense, 4 * room)) abort();
        use(&to, dense);
        ends[1 + below(rows)] ^= 1u << below(3); /* no longer what is needed */
        fill_groups(&q, 0, rows, &to, columns_of, codes_of);
        free(back), free(ends), free(codes_of), free(columns_of);
    }
    free(dense), free(codebook), free(starts), free(counts), free(all), free(places);
    free(codes), free(columns);
}

static void fuzz_examine(void) {
    static const uint32_t widths[] = {1, 2, 4, 8}, sizes[] = {1, 2, 4};
    uint32_t rows = 1 + below(6), cols = 1 + below(40), levels = below(40), kind = below(6);
    uint32_t width = kind < 4 ? widths[kind] : 1, size = kind < 4 ? 1 : sizes[kind - 3];
    size_t groups = below(200);
    uint32_t *starts = block(4 * (rows + 1));
    uint16_t *columns = block(2 * groups * width);
    uint8_t *codes = block(size * groups);
    float *codebook = block(4 * levels);
    for (uint32_t i = 0; i <= rows; i++) starts[i] = (uint32_t)(groups * i / rows);
    for (size_t i = 0; i < groups * width; i++) columns[i] = (uint16_t)below(cols + 1);
    if (size == 2)
        for (size_t i = 0; i < groups; i++) ((uint16_t *)codes)[i] = (uint16_t)below(levels + 1);
    else
        fill(codes, size * groups, size == 4 ? 100 : levels + 1);
    fill(codebook, 4 * levels, 60);
    if (below(3) == 0) starts[below(rows + 1)] = below(300);
    if (below(3) == 0 && groups) columns[below((uint32_t)(groups * width))] = (uint16_t)below(70000);
    quantized q = {rows, cols, width, size, levels, groups, starts, columns, codes, codebook};
    uint64_t weights, digest;
    if (examine(&q, 0, rows, 0, cols, &weights, &digest) == RUNNING_OK) {
        float *out = block(4 * (size_t)rows * cols);
        densify(&q, 0, rows, cols, out);
        use(&q, NULL);
        free(out);
    }
    free(starts), free(columns), free(codes), free(codebook);
}

/* Any rows of a chunk, into more or less room than they need. */
static void fuzz_rows(const chunk *from) {
    const uint32_t cols = from->cols;
    const uint64_t first = from->first;
    uint32_t row = (uint32_t)(first / cols), width = 1u << below(4);
    uint32_t first_row = row + below(4) - (row ? below(2) : 0), last_row = first_row + below(40);
    size_t room = below(2) ? below(200) : from->entries;
    size_t levels = from->symbols < MOST_SMALL ? from->symbols : MOST_SMALL;
    size_t places = levels * bucket_room(cols);
    uint64_t *held = block(8 * levels), left = below(3) ? 0 : below((uint32_t)(first % cols) + 2);
    row_state state = {block(2 * places), held, row - (row ? below(2) : 0), 0};
    for (size_t i = 0; i < places; i++) state.columns[i] = (uint16_t)below(cols);
    for (size_t level = 0; level < levels; level++) {
        held[level] = below(2) ? 0 : below((uint32_t)left + 1);
        left -= held[level];
    }
    if (levels && below(9) == 0) held[below((uint32_t)levels)] = below(70000);
    quantized to = {0, cols, width, 1, from->symbols, room, NULL, NULL, NULL, NULL};
    uint16_t *columns = block(2 * room * width);
    uint8_t *codes_out = block(room);
    uint32_t *ends = block(4 * (size_t)(last_row - first_row));
    if (group_packed(from, first_row, last_row, (int)below(2), &state, &to, columns, codes_out,
                     ends) == RUNNING_OK) {
        if (state.groups > room) abort();
        for (size_t level = 0; level < levels; level++)
            if (held[level] > cols) abort();
        for (size_t i = 0; i < state.groups * width; i++)
            if (columns[i] > cols) abort();
    }
    free(state.columns), free(held), free(columns), free(codes_out), free(ends);
}

static void fuzz_lists(void) {
    uint32_t entries = below(600), per_byte = below(7), limit = 1 + below(256), cols = 1 + below(400);
    uint32_t symbols = below(4) ? below(20) : below(70000);
    uint64_t first = below(100000), cells = 1 + below(9000);
    size_t bytes = per_byte ? (entries + per_byte - 1) / per_byte : 2 * (size_t)entries, count;
    uint64_t rows = (first + cells - 1) / cols - first / cols + 1;
    uint8_t *steps = block(entries), *codes = block(bytes);
    uint16_t *columns = block(2 * (size_t)entries);
    void *listed = block((symbols > MOST_SMALL ? 2 : 1) * (size_t)entries);
    uint32_t *counts = block(4 * (size_t)rows);
    fill(steps, entries, limit);
    fill(codes, bytes, 1 + below(256));
    const chunk from = {steps, codes, entries, per_byte, symbols, first, (size_t)cells, cols};
    if (list_packed(&from, columns, listed, counts, &count) == RUNNING_OK) {
        uint64_t sum = 0;
        for (uint64_t i = 0; i < rows; i++) sum += counts[i];
        if (sum != count || count > entries) abort();
        for (size_t i = 0; i < count; i++)
            if (columns[i] >= cols) abort();
    }
    fuzz_rows(&from);
    uint32_t most = below(300);
    uint32_t *values = block(4 * (size_t)entries), *levels = block(4 * (size_t)most);
    for (uint32_t i = 0; i < entries; i++) values[i] = below(below(2) ? 1000 : 10);
    ptrdiff_t found = find_levels(values, entries, most, levels, columns);
    if (found < 0 || found > (ptrdiff_t)most + 1) abort();
    for (uint32_t i = 0; found <= (ptrdiff_t)most && i < entries; i++)
        if (columns[i] >= found || levels[columns[i]] != values[i]) abort();
    free(steps), free(codes), free(columns), free(listed), free(counts), free(values), free(levels);
}

int main(int argc, char **argv) {
    long rounds = argc > 1 ? atol(argv[1]) : 20000;
    for (long i = 0; i < rounds; i++) {
        fuzz_groups();
        fuzz_examine();
        fuzz_lists();
    }
    printf("%ld rounds of matrices of few weights: nothing found\n", rounds);
    return 0;
}
