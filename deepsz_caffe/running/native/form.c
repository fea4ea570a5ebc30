/* What a matrix of few different weights is: checked, and as a dense one. */
#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "../../codecs/native/digest.h"
#include "running.h"

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

/* What `examine` asks of some columns; those that stand for none are among the sums. */
typedef struct {
    uint64_t sum, squares, empty, outside;
} column_sums;

static void add_columns(const uint16_t *columns, size_t count, uint32_t cols, column_sums *sums) {
    for (size_t i = 0; i < count; i++) {
        uint64_t column = columns[i];
        sums->sum += column;
        sums->squares += column * column;
        sums->empty += column == cols;
        sums->outside += column > cols;
    }
}

#if defined(__SSE2__)
/* Eight columns at a time, 2^15 less each, so that they have a sign: SSE2 adds products of such in
 * pairs, and two squares are 2^31 at most. Returns how many columns it took. */
static size_t add_eights(const uint16_t *columns, size_t count, uint32_t cols, column_sums *sums) {
    enum { EIGHTS = 1 << 13 }; /* so many leave room in 32 bits */
    const __m128i none = _mm_set1_epi16((int16_t)cols), half = _mm_set1_epi16(INT16_MIN);
    const __m128i ones = _mm_set1_epi16(1), low = _mm_set1_epi64x(0xFFFFFFFF);
    const __m128i zero = _mm_setzero_si128();
    const size_t eights = count / 8;
    for (size_t start = 0; start < eights; start += EIGHTS) {
        const size_t end = eights - start < EIGHTS ? eights : start + EIGHTS;
        __m128i sum = zero, squares = zero, empty = zero, outside = zero;
        for (size_t i = start; i < end; i++) {
            __m128i eight = _mm_loadu_si128((const __m128i *)columns + i);
            __m128i less = _mm_xor_si128(eight, half), square = _mm_madd_epi16(less, less);
            sum = _mm_add_epi32(sum, _mm_madd_epi16(less, ones));
            squares = _mm_add_epi64(squares, _mm_and_si128(square, low));
            squares = _mm_add_epi64(squares, _mm_srli_epi64(square, 32));
            empty = _mm_sub_epi16(empty, _mm_cmpeq_epi16(eight, none));
            outside = _mm_or_si128(outside, _mm_subs_epu16(eight, none));
        }
        int32_t parts[4], holes[4];
        uint64_t both[2], beyond[2];
        _mm_storeu_si128((__m128i *)parts, sum);
        _mm_storeu_si128((__m128i *)holes, _mm_madd_epi16(empty, ones));
        _mm_storeu_si128((__m128i *)both, squares);
        _mm_storeu_si128((__m128i *)beyond, outside);
        int64_t all = (int64_t)parts[0] + parts[1] + parts[2] + parts[3];
        uint64_t there = 8 * (uint64_t)(end - start);
        sums->sum += (uint64_t)all + (there << 15);
        sums->squares += both[0] + both[1] + ((uint64_t)all << 16) + (there << 30);
        sums->empty += (uint64_t)(holes[0] + holes[1] + holes[2] + holes[3]);
        sums->outside += (beyond[0] | beyond[1]) != 0;
    }
    return 8 * eights;
}
#else
static size_t add_eights(const uint16_t *columns, size_t count, uint32_t cols, column_sums *sums) {
    (void)columns, (void)count, (void)cols, (void)sums;
    return 0;
}
#endif

/* Groups of one code, `count` columns in all, of which some may be empty places. The sum of
 * (key + column)^2 is that of the columns and of their squares, with key taken out. */
static int examine_run(const uint16_t *columns, size_t count, uint32_t cols, uint64_t key,
                       uint64_t hash, uint64_t *weights, uint64_t *digest) {
    const uint64_t none = cols;
    column_sums sums = {0, 0, 0, 0};
    size_t done = add_eights(columns, count, cols, &sums);
    add_columns(columns + done, count - done, cols, &sums);
    if (sums.outside) return RUNNING_DAMAGED;
    uint64_t there = count - sums.empty;
    *digest += hash * (there * key * key + 2 * key * (sums.sum - sums.empty * none) +
                       sums.squares - sums.empty * none * none);
    *weights += hash ? there : 0;
    return RUNNING_OK;
}

int examine(const quantized *q, uint32_t first, uint32_t last, uint64_t offset, uint64_t stride,
            uint64_t *weights, uint64_t *digest) {
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
