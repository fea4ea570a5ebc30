/* The compiled kernels of deepsz_caffe.codecs: plain C99, no Python, no floating-point arithmetic.
 *
 * Every function has a twin in fallback.py that gives the same bytes. Whatever a stream holds,
 * nothing outside the given arrays is read or written. Weights travel as their float32 bits.
 */
#ifndef DEEPSZ_KERNELS_H
#define DEEPSZ_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum {
    KERNEL_OK = 0,
    KERNEL_DAMAGED = -1,
    KERNEL_MEMORY = -2,
    KERNEL_FULL = -3
};

/* ---- mixing.c: the context-mixing coder ---- */

typedef struct {
    uint32_t rows, cols;  /* of the matrix as it is walked; rows * cols is at least 1 */
    uint32_t stride;      /* columns between neighbours in another direction, < cols; 0: none */
    int32_t prior;        /* logit of the share of non-zeros, in 1/256 */
    uint32_t low_bits;    /* of a magnitude, coded apart from its unary part: 0..8 */
    uint32_t largest[2];  /* magnitude that may occur: positive, negative; at most 2^21 */
} mixing_shape;

/* Fill the tables; once, before anything else is called. */
void mixing_init(void);

/* The level at (row, col) is levels[row * row_step + col * col_step].
 * Returns the bytes written, or an error. */
ptrdiff_t mixing_encode(const mixing_shape *shape, const int32_t *levels, ptrdiff_t row_step,
                        ptrdiff_t col_step, uint8_t *out, size_t room);

int mixing_decode(const mixing_shape *shape, const uint8_t *in, size_t length, int32_t *levels,
                  ptrdiff_t row_step, ptrdiff_t col_step);

/* ---- scatter.c: sparse weights into a dense matrix ---- */

/* Of the weights that are not 0: their digest, and how many they are. */
typedef struct {
    uint64_t digest, nonzeros;
} tally;

/* `first` is the position in its matrix of the first weight. */
tally digest_weights(const uint32_t *weights, size_t count, uint64_t first);

/* The two-array form: a step from the last non-zero to the next for each value; 0: 255 cells on. */
int scatter_steps(const uint32_t *data, size_t data_count, const uint8_t *index, size_t index_count,
                  uint32_t *out, size_t count, tally *found);

/* Steps less 1, and as many symbols: `per_byte` of them a byte, the first in the lowest digit of
 * base `symbols`; or, at 0 a byte, their low bytes followed by their high bytes. */
int scatter_packed(const uint8_t *steps, const uint8_t *codes, size_t entries, uint32_t per_byte,
                   uint32_t symbols, const uint32_t *values, uint32_t *out, size_t count,
                   uint64_t first, tally *found);

/* Replace levels in place: 0 stays 0, 1 becomes positive[0], -1 becomes negative[0]. */
int values_of_levels(uint32_t *cells, size_t count, const uint32_t *positive, uint32_t positives,
                     const uint32_t *negative, uint32_t negatives);

/* ---- planes.c ---- */

/* First bytes of all groups of four, then the second ones, ...: put the groups together again. */
void join_planes(const uint8_t *planes, size_t size, uint8_t *out);

#endif
