/* Matrices of few different weights, and their products: plain C99 with GCC's vector types.
 *
 * A row is a run of groups: `width` columns that share one weight. Column `cols` stands for none; the
 * products read a 0 there. Nothing outside the given arrays is read or written if `examine` found
 * nothing wrong with the matrix.
 */
#ifndef DEEPSZ_RUNNING_H
#define DEEPSZ_RUNNING_H

#include <stddef.h>
#include <stdint.h>

enum { RUNNING_OK = 0, RUNNING_DAMAGED = -1, RUNNING_MEMORY = -2 };

enum { WIDEST = 8, MOST_COLUMNS = 65535, MOST_SMALL = 256 };

/* The weight of a group is codebook[code], or where a code has four bytes it is the weight. */
typedef struct {
    uint32_t rows, cols;     /* at most MOST_COLUMNS columns */
    uint32_t width;          /* 1, 2, 4 or 8; above 1 only with codes of one byte */
    uint32_t code_bytes;     /* 1, 2 or 4 */
    uint32_t levels;         /* entries of the codebook */
    size_t groups;           /* of all rows */
    const uint32_t *starts;  /* rows + 1: the first group of each row, and the end */
    const uint16_t *columns; /* width of them a group */
    const void *codes;
    const float *codebook;
} quantized;

/* ---- lists.c: from streams to such matrices ---- */

/* A chunk of `packed`, see scatter.c of the codecs. */
typedef struct {
    const uint8_t *steps, *codes;
    size_t entries;
    uint32_t per_byte; /* symbols that a code has, or 0: one in two bytes */
    uint32_t symbols;  /* different ones */
    uint64_t first;    /* its first cell in the matrix */
    size_t cells;
    uint32_t cols; /* of the matrix */
} chunk;

/* The entries of a chunk as columns and symbols, those of symbol 0 left out. Symbols have one byte
 * where there are at most 256, otherwise two; `counts` gets the entries of each row that the chunk
 * touches. */
int list_packed(const chunk *from, uint16_t *columns, void *listed, uint32_t *counts, size_t *count);

/* Columns that a level of a row has room for while the row is put together. */
size_t bucket_room(uint32_t cols);

/* What a row that goes on in the next chunk has so far. */
typedef struct {
    uint16_t *columns; /* of each level, with `bucket_room` places */
    uint64_t *held;    /* how many each level has */
    uint64_t row;      /* the row under work */
    uint64_t groups;   /* written so far, of all rows */
} row_state;

/* The entries of a chunk straight into groups: of the rows from `first_row` on and before `last_row`
 * that end in it, or all with `finish`, after which no chunk follows. Symbols, at most 256, are
 * their codes. `to` says what there is room for, and of how many columns and levels; `ends` gets,
 * for each of these rows, the groups written up to its end. */
int group_packed(const chunk *from, uint32_t first_row, uint32_t last_row, int finish,
                 row_state *state, const quantized *to, uint16_t *columns, uint8_t *codes,
                 uint32_t *ends);

/* The different values among `values`, in the order in which they appear, and which one each is.
 * Returns how many there are, or `most` + 1 where there are more. */
ptrdiff_t find_levels(const uint32_t *values, size_t count, uint32_t most, uint32_t *levels,
                      uint16_t *codes);

/* Groups that each row of a matrix of width 1 has at widths 1, 2, 4 and 8: counts[row][4]. */
void count_groups(const quantized *from, uint32_t first, uint32_t last, uint32_t *counts);

/* The rows of `from`, of width 1, into groups; `to` has their starts already. */
int fill_groups(const quantized *from, uint32_t first, uint32_t last, const quantized *to,
                uint16_t *columns, uint8_t *codes);

/* ---- form.c ---- */

/* Check some rows; give the weights in them and their part of the digest of a matrix of `stride`
 * columns in which this one begins at column `offset`. */
int examine(const quantized *q, uint32_t first, uint32_t last, uint64_t offset, uint64_t stride,
            uint64_t *weights, uint64_t *digest);

/* Some rows as float32[last - first][stride], zeros included. */
void densify(const quantized *q, uint32_t first, uint32_t last, size_t stride, float *out);

/* ---- product.c ---- */

enum { PORTABLE = 0, AVX2 = 1, AVX512 = 2 };

/* The best instruction set that this processor has. */
int instruction_set(void);

/* y[i][row] = x[i] . row + bias[row] for `batch` vectors and some rows; strides in floats. `bias`
 * may be NULL. With `more` the product is added to what y holds. What a vector gives depends
 * neither on the batch, nor on the instruction set, nor on how the rows are split. */
int multiply(const quantized *q, uint32_t first, uint32_t last, const float *x, size_t batch,
             size_t x_stride, const float *bias, float *y, size_t y_stride, int more, int set);

#endif
