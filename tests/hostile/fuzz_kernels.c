/* Feeds the compiled kernels damaged and arbitrary input, under sanitizers: `make fuzz-kernels`.
 *
 * Every array is allocated at its exact size, so that one byte beyond it ends the run. What a kernel
 * says does not matter here, but an undamaged stream must give its levels back.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../deepsz_caffe/codecs/native/kernels.h"

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

static void fuzz_mixing(void) {
    uint32_t rows = 1 + below(12), cols = 1 + below(40), cells = rows * cols;
    mixing_shape shape = {rows, cols, cols > 2 && below(2) ? 2 + below(cols - 2) : 0,
                          (int32_t)below(6000) - 3000, below(9), {1u << 21, 1u << 21}};
    int32_t *levels = block(4 * cells), *back = block(4 * cells);
    uint32_t density = 1 + below(100), range = 1 + below(below(8) ? 20 : 1u << 21);
    for (uint32_t i = 0; i < cells; i++) {
        int32_t size = below(100) < density ? (int32_t)below(range) : 0;
        levels[i] = below(2) ? size : -size;
    }
    size_t room = 64 * (size_t)cells + 4096;
    uint8_t *out = block(room);
    ptrdiff_t length = mixing_encode(&shape, levels, cols, 1, out, room);
    if (length < 0) abort();
    uint8_t *stream = block((size_t)length);
    memcpy(stream, out, (size_t)length);
    if (mixing_decode(&shape, stream, (size_t)length, back, cols, 1) ||
        memcmp(levels, back, 4 * cells))
        abort();
    for (uint32_t i = 1 + below(4); i && length; i--)
        stream[below((uint32_t)length)] ^= (uint8_t)(1u << below(8));
    size_t kept = below(4) ? (size_t)length : below((uint32_t)length + 1);
    uint8_t *cut = block(kept);
    memcpy(cut, stream, kept);
    shape.largest[0] = shape.largest[1] = 1 + below(50);
    mixing_decode(&shape, cut, kept, back, cols, 1);
    free(cut);
    /* A full output must be noticed. */
    size_t little = below((uint32_t)length + 1);
    uint8_t *small = block(little);
    shape.largest[0] = shape.largest[1] = 1u << 21;
    mixing_encode(&shape, levels, cols, 1, small, little);
    free(small), free(stream), free(out), free(levels), free(back);
}

static void fill(uint8_t *bytes, size_t count, uint32_t limit) {
    for (size_t i = 0; i < count; i++) bytes[i] = (uint8_t)below(limit);
}

static void fuzz_planes(void) {
    size_t size = below(70);
    uint8_t *planes = block(size), *out = block(size);
    fill(planes, size, 256);
    join_planes(planes, size, out);
    for (size_t i = 0; i < size; i++)
        if (out[i] != (i < size / 4 * 4 ? planes[i % 4 * (size / 4) + i / 4] : planes[i])) abort();
    free(planes), free(out);
}

static void fuzz_scatter(void) {
    uint32_t entries = below(3000), per_byte = below(7), limit = 1 + below(256);
    uint32_t symbols = below(4) ? below(20) : below(70000), count = below(20000);
    size_t bytes = per_byte ? (entries + per_byte - 1) / per_byte : 2 * (size_t)entries;
    uint8_t *steps = block(entries), *codes = block(bytes);
    uint32_t *values = block(4 * (size_t)symbols), *out = block(4 * (size_t)count);
    tally found, again;
    fill(steps, entries, limit);
    fill(codes, bytes, 1 + below(256));
    fill((uint8_t *)values, 4 * (size_t)symbols, 256);
    if (!scatter_packed(steps, codes, entries, per_byte, symbols, values, out, count, 7, &found)) {
        again = digest_weights(out, count, 7);
        if (found.digest != again.digest || found.nonzeros != again.nonzeros) abort();
    }
    size_t data = 0;
    for (uint32_t i = 0; i < entries; i++) data += steps[i] != 0;
    if (below(3) == 0) data = below((uint32_t)data + 2);
    uint32_t *numbers = block(4 * data);
    fill((uint8_t *)numbers, 4 * data, 256);
    scatter_steps(numbers, data, steps, entries, out, count, &found);
    fill((uint8_t *)out, 4 * (size_t)count, 1 + below(256));
    digest_weights(out, count, 0);
    if (below(2))
        for (uint32_t i = 0; i < count; i++) out[i] = below(21) - 10;
    values_of_levels(out, count, values, symbols / 2, values + symbols / 2, symbols - symbols / 2);
    free(steps), free(codes), free(values), free(out), free(numbers);
}

int main(int argc, char **argv) {
    long rounds = argc > 1 ? atol(argv[1]) : 20000;
    mixing_init();
    for (long i = 0; i < rounds; i++) {
        fuzz_mixing();
        fuzz_scatter();
        fuzz_planes();
    }
    printf("%ld rounds of mixing and of scattering: nothing found\n", rounds);
    return 0;
}
