/* The digest of weights that digest.py defines: the sum of key_of(position)^2 * hash_of(bits). */
#ifndef DEEPSZ_DIGEST_H
#define DEEPSZ_DIGEST_H

#include <stdint.h>

#define BITS_FACTOR 0x9E3779B97F4A7C15u
#define FIRST_KEY 0xD6E8FEB86659FD93u

/* +0 and -0 count nothing. */
static inline uint64_t hash_of(uint32_t bits) {
    uint64_t x = bits * BITS_FACTOR;
    return bits << 1 ? (x ^ x >> 29) | 1 : 0;
}

#endif
