/* Sums of rows for LANES vectors at a time, in registers of type PART, with code for TARGET: one
 * function for each kind of matrix. */

#define PARTS (LANES * sizeof(float) / sizeof(PART))
#define ROWS NAME(NAME(rows, LANES), SET)

/* Add what a group gives to PARTS sums. */
#define INPUT(i) in[columns[i] * PARTS + part]
#define ADD_GROUP(group, sums)                                                                 \
    do {                                                                                       \
        const uint16_t *columns = q->columns + (group) * width;                                \
        float weight = weight_of(q, group, code_bytes);                                        \
        for (uint32_t part = 0; part < PARTS; part++) {                                        \
            PART sum = INPUT(0);                                                               \
            if (width >= 2) sum += INPUT(1);                                                   \
            if (width >= 4) sum += INPUT(2) + INPUT(3);                                        \
            if (width >= 8) sum += (INPUT(4) + INPUT(5)) + (INPUT(6) + INPUT(7));              \
            (sums)[part] += weight * sum;                                                      \
        }                                                                                      \
    } while (0)

static inline __attribute__((always_inline)) TARGET void NAME(ROWS, any)(
    const quantized *q, uint32_t first, uint32_t last, const float *inputs, const output *to,
    const uint32_t width, const uint32_t code_bytes) {
    const PART *in = (const PART *)inputs;
    for (uint32_t row = first; row < last; row++) {
        /* Two sums: an addition need not wait for the one before it. */
        PART sums[2][PARTS];
        memset(sums, 0, sizeof sums);
        size_t group = q->starts[row], end = q->starts[row + 1];
        for (; group + 2 <= end; group += 2)
            for (uint32_t half = 0; half < 2; half++)
                ADD_GROUP(group + half, sums[half]);
        if (group < end) ADD_GROUP(group, sums[0]);
        for (uint32_t part = 0; part < PARTS; part++) sums[0][part] += sums[1][part];
        put(to, row, (const float *)sums[0]);
    }
}

#define KIND(name, width, code_bytes)                                                          \
    static TARGET void NAME(ROWS, name)(const quantized *q, uint32_t first, uint32_t last,     \
                                        const float *inputs, const output *to) {               \
        NAME(ROWS, any)(q, first, last, inputs, to, width, code_bytes);                        \
    }
KIND(k0, 1, 1)
KIND(k1, 2, 1)
KIND(k2, 4, 1)
KIND(k3, 8, 1)
KIND(k4, 1, 2)
KIND(k5, 1, 4)

#undef KIND
#undef ADD_GROUP
#undef INPUT
#undef ROWS
#undef PARTS
#undef PART
#undef LANES
