/* Bytes of equal significance, which were stored together, back into their numbers. */
#include <string.h>

#include "kernels.h"

void join_planes(const uint8_t *planes, size_t size, uint8_t *out) {
    size_t groups = size / 4;
    const uint8_t *a = planes, *b = a + groups, *c = b + groups, *d = c + groups;
    for (size_t i = 0; i < groups; i++) {
        out[4 * i] = a[i];
        out[4 * i + 1] = b[i];
        out[4 * i + 2] = c[i];
        out[4 * i + 3] = d[i];
    }
    memcpy(out + 4 * groups, d + groups, size - 4 * groups);
}
