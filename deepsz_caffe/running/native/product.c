/* Products with matrices of few different weights.
 *
 * The inputs of a group are summed before its weight multiplies them: one addition for each weight
 * that is not 0, and one read. Vectors are taken 16 at a time, interleaved, so that the inputs of a
 * column lie in one line of the cache; a single one as it is.
 *
 * Additions come in the same order for every number of lanes and every instruction set, and there
 * are no fused ones, so all give the same bits.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>

#include "running.h"

#define NAME_(a, b) a##_##b
#define NAME(a, b) NAME_(a, b)

/* The kinds of matrices that there are functions for: three widths more for codes of one byte. */
enum { KINDS = 6 };
#define TABLE(name) \
    { NAME(name, k0), NAME(name, k1), NAME(name, k2), NAME(name, k3), NAME(name, k4), NAME(name, k5) }

typedef float quad __attribute__((vector_size(16)));
typedef float eight __attribute__((vector_size(32)));
typedef float sixteen __attribute__((vector_size(64)));

static inline float weight_of(const quantized *q, size_t group, const uint32_t code_bytes) {
    if (code_bytes == 1) return q->codebook[((const uint8_t *)q->codes)[group]];
    if (code_bytes == 2) return q->codebook[((const uint16_t *)q->codes)[group]];
    return ((const float *)q->codes)[group];
}

/* Where y gets the sum of a row. */
typedef struct {
    float *y;
    size_t stride, lanes; /* lanes: vectors that are there */
    const float *bias;
    int more;
} output;

static inline void put(const output *to, uint32_t row, const float *sums) {
    float bias = to->bias ? to->bias[row] : 0;
    for (size_t lane = 0; lane < to->lanes; lane++) {
        float *y = to->y + lane * to->stride + row;
        *y = to->more ? *y + sums[lane] : sums[lane] + bias;
    }
}

typedef void rows_function(const quantized *q, uint32_t first, uint32_t last, const float *inputs,
                           const output *to);

#define SET portable
#define VECTOR 4
#define TARGET
#include "lanes.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define SET avx2
#define VECTOR 8
#define TARGET __attribute__((target("avx2")))
#include "lanes.h"

#define SET avx512
#define VECTOR 16
#define TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq")))
#include "lanes.h"
#endif

int instruction_set(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
        return AVX512;
    if (__builtin_cpu_supports("avx2")) return AVX2;
#endif
    return PORTABLE;
}

/* Lanes that take so many vectors with the least work. */
static uint32_t lanes_for(size_t batch) { return batch == 1 ? 1 : batch <= 4 ? 4 : batch <= 8 ? 8 : 16; }

static rows_function *choose(const quantized *q, uint32_t lanes, int set) {
    uint32_t kind = q->code_bytes == 4 ? 5 : q->code_bytes == 2 ? 4 : 0;
    uint32_t size = lanes == 1 ? 0 : lanes == 4 ? 1 : lanes == 8 ? 2 : 3;
    if (kind == 0) kind = q->width == 8 ? 3 : q->width == 4 ? 2 : q->width == 2 ? 1 : 0;
#if defined(__x86_64__) && defined(__GNUC__)
    if (set == AVX512) return functions_avx512[size][kind];
    if (set == AVX2) return functions_avx2[size][kind];
#endif
    (void)set;
    return functions_portable[size][kind];
}

/* Vectors side by side, column by column, and zeros for those that are not there. */
static void interleave(const float *x, size_t stride, size_t there, uint32_t cols, uint32_t lanes,
                       float *out) {
    enum { BLOCK = 16 };
    for (uint32_t start = 0; start < cols; start += BLOCK) {
        uint32_t end = cols - start < BLOCK ? cols : start + BLOCK;
        for (size_t lane = 0; lane < lanes; lane++)
            for (uint32_t col = start; col < end; col++)
                out[(size_t)col * lanes + lane] = lane < there ? x[lane * stride + col] : 0;
    }
    memset(out + (size_t)cols * lanes, 0, lanes * sizeof *out);
}

int multiply(const quantized *q, uint32_t first, uint32_t last, const float *x, size_t batch,
             size_t x_stride, const float *bias, float *y, size_t y_stride, int more, int set) {
    void *memory;
    uint32_t widest = lanes_for(batch);
    if (posix_memalign(&memory, 64, ((size_t)q->cols + 1) * widest * sizeof(float)))
        return RUNNING_MEMORY;
    float *inputs = memory;
    for (size_t done = 0; done < batch;) {
        uint32_t lanes = lanes_for(batch - done);
        size_t there = batch - done < lanes ? batch - done : lanes;
        output to = {y + done * y_stride, y_stride, there, bias, more};
        interleave(x + done * x_stride, x_stride, there, q->cols, lanes, inputs);
        choose(q, lanes, set)(q, first, last, inputs, &to);
        done += there;
    }
    free(memory);
    return RUNNING_OK;
}
