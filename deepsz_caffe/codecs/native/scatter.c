/* Sparse weights into a dense matrix, in one pass over its memory, with the digest on the way.
 *
 * A block of the matrix is put together in the first-level cache and then streamed out past the
 * caches: plain stores would first read every line of the matrix that they overwrite.
 * The digest is defined in digest.py.
 */
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "digest.h"
#include "kernels.h"

enum {
    BLOCK = 4096, /* cells put together at a time: 16 KiB */
    BATCH = 768,  /* entries unpacked at a time; 1, 2, 3 and 4 divide it */
};

tally digest_weights(const uint32_t *weights, size_t count, uint64_t first) {
    tally found = {0, 0};
    for (size_t i = 0; i < count; i++)
        if (weights[i]) {
            uint64_t key = FIRST_KEY + first + i, hash = hash_of(weights[i]);
            found.digest += key * key * hash;
            found.nonzeros += hash & 1;
        }
    return found;
}

/* The matrix being written, the block under work, and the sum so far. */
typedef struct {
    uint32_t *out;
    size_t count; /* cells of the matrix */
    size_t start; /* first cell of the block */
    uint64_t key; /* FIRST_KEY + position of the block's first cell in its layer */
    tally found;
    uint32_t block[BLOCK];
} writer;

static void open_writer(writer *w, uint32_t *out, size_t count, uint64_t first) {
    memset(w, 0, sizeof *w);
    w->out = out;
    w->count = count;
    w->key = FIRST_KEY + first;
}

static void write_memory(writer *w, size_t size) {
    size_t done = 0;
    uint32_t *out = w->out + w->start;
#ifdef __SSE2__
    if (((uintptr_t)out & 15) == 0)
        for (; done + 4 <= size; done += 4)
            _mm_stream_si128((__m128i *)(out + done),
                             _mm_loadu_si128((const __m128i *)(w->block + done)));
#endif
    memcpy(out + done, w->block + done, (size - done) * sizeof *out);
}

static void write_block(writer *w) {
    size_t left = w->count - w->start, size = left < BLOCK ? left : BLOCK;
    write_memory(w, size);
    memset(w->block, 0, sizeof w->block);
    w->start += size;
    w->key += size;
}

static int close_writer(writer *w, tally *found) {
    while (w->start < w->count) write_block(w);
#ifdef __SSE2__
    _mm_sfence();
#endif
    *found = w->found;
    return KERNEL_OK;
}

int scatter_steps(const uint32_t *data, size_t data_count, const uint8_t *index, size_t index_count,
                  uint32_t *out, size_t count, tally *found) {
    writer w;
    open_writer(&w, out, count, 0);
    size_t next_value = 0;
    uint64_t cell = 0; /* one on from the cell in the block: the first step counts from before it */
    for (size_t i = 0; i < index_count; i++) {
        cell += index[i] ? index[i] : 255;
        if (index[i] == 0) continue;
        if (w.start + cell > count || next_value == data_count) return KERNEL_DAMAGED;
        while (cell > BLOCK) {
            write_block(&w);
            cell -= BLOCK;
        }
        uint64_t key = w.key + cell - 1;
        uint32_t bits = data[next_value++];
        w.block[cell - 1] = bits;
        uint64_t hash = hash_of(bits);
        w.found.digest += key * key * hash;
        w.found.nonzeros += hash & 1;
    }
    if (next_value != data_count || (index_count && index[index_count - 1] == 0))
        return KERNEL_DAMAGED;
    return close_writer(&w, found);
}

/* Entries of a batch, unpacked: their bits and the hashes of them. */
typedef struct {
    uint32_t bits[BATCH + 4];
    uint64_t hash[BATCH + 4];
} entries_of;

/* The same for every code, `per_byte` entries each. */
typedef struct {
    uint32_t bits[256 * 4];
    uint64_t hash[256 * 4];
} table_of;

/* With `per_byte` a constant the copies are one or two moves. */
static inline void unpack(const table_of *table, const uint8_t *codes, size_t bytes,
                          const uint32_t per_byte, entries_of *to) {
    for (size_t i = 0; i < bytes; i++) {
        memcpy(to->bits + per_byte * i, table->bits + per_byte * codes[i], 4 * per_byte);
        memcpy(to->hash + per_byte * i, table->hash + per_byte * codes[i], 8 * per_byte);
    }
}

static uint64_t sum_of(const uint8_t *bytes, size_t count) {
    uint64_t sum = 0;
    size_t i = 0;
#ifdef __SSE2__
    __m128i sums = _mm_setzero_si128();
    for (; i + 16 <= count; i += 16)
        sums = _mm_add_epi64(
            sums, _mm_sad_epu8(_mm_loadu_si128((const __m128i *)(bytes + i)), _mm_setzero_si128()));
    uint64_t halves[2];
    memcpy(halves, &sums, sizeof halves);
    sum = halves[0] + halves[1];
#endif
    for (; i < count; i++) sum += bytes[i];
    return sum;
}

static int put_packed(const uint8_t *steps, const uint8_t *codes, size_t entries, uint32_t per_byte,
                      uint32_t symbols, const uint32_t *values, writer *w, tally *found) {
    table_of table;
    entries_of batch;
    uint64_t cells = entries;
    uint32_t powers = 1;

    if (per_byte > 4 || symbols == 0 || symbols > 65536) return KERNEL_DAMAGED;
    if (per_byte == 0) { /* two planes of bytes: low, high */
        for (size_t i = 0; i < entries; i++)
            if ((codes[i] | (uint32_t)codes[entries + i] << 8) >= symbols) return KERNEL_DAMAGED;
    } else {
        size_t bytes = (entries + per_byte - 1) / per_byte;
        uint8_t largest = 0;
        for (uint32_t i = 0; i < per_byte; i++)
            if ((powers *= symbols) > 256) return KERNEL_DAMAGED;
        for (size_t i = 0; i < bytes; i++) largest = codes[i] > largest ? codes[i] : largest;
        if (largest >= powers) return KERNEL_DAMAGED;
        for (uint32_t code = 0; code < powers; code++)
            for (uint32_t i = 0, rest = code; i < per_byte; i++, rest /= symbols) {
                table.bits[code * per_byte + i] = values[rest % symbols];
                table.hash[code * per_byte + i] = hash_of(values[rest % symbols]);
            }
    }
    /* The last cell is known before anything is written: no check of it in the loop. */
    cells += sum_of(steps, entries);
    if (cells > w->count) return KERNEL_DAMAGED;

    size_t cell = 0; /* in the block */
    for (size_t done = 0; done < entries; done += BATCH) {
        size_t size = entries - done < BATCH ? entries - done : BATCH;
        const uint8_t *from = codes + (per_byte ? done / per_byte : done);
        switch (per_byte) {
        case 0:
            for (size_t i = 0; i < size; i++) {
                batch.bits[i] = values[from[i] | (uint32_t)from[entries + i] << 8];
                batch.hash[i] = hash_of(batch.bits[i]);
            }
            break;
        case 1: unpack(&table, from, size, 1, &batch); break;
        case 2: unpack(&table, from, (size + 1) / 2, 2, &batch); break;
        case 3: unpack(&table, from, (size + 2) / 3, 3, &batch); break;
        default: unpack(&table, from, (size + 3) / 4, 4, &batch); break;
        }
        /* In variables of its own the loop keeps all of them in registers. */
        uint32_t *block = w->block;
        uint64_t key = w->key, sum = 0, nonzeros = 0;
        for (size_t i = 0; i < size; i++) {
            cell += steps[done + i];
            while (cell >= BLOCK) {
                write_block(w);
                block = w->block;
                key = w->key;
                cell -= BLOCK;
            }
            uint64_t position = key + cell;
            block[cell++] = batch.bits[i];
            sum += position * position * batch.hash[i];
            nonzeros += batch.hash[i] & 1;
        }
        w->found.digest += sum;
        w->found.nonzeros += nonzeros;
    }
    return close_writer(w, found);
}

int scatter_packed(const uint8_t *steps, const uint8_t *codes, size_t entries, uint32_t per_byte,
                   uint32_t symbols, const uint32_t *values, uint32_t *out, size_t count,
                   uint64_t first, tally *found) {
    writer w;
    open_writer(&w, out, count, first);
    return put_packed(steps, codes, entries, per_byte, symbols, values, &w, found);
}

int values_of_levels(uint32_t *cells, size_t count, const uint32_t *positive, uint32_t positives,
                     const uint32_t *negative, uint32_t negatives) {
    for (size_t i = 0; i < count; i++) {
        int32_t level = (int32_t)cells[i];
        if (level > 0) {
            if ((uint32_t)level > positives) return KERNEL_DAMAGED;
            cells[i] = positive[level - 1];
        } else if (level < 0) {
            if ((uint32_t)-(level + 1) >= negatives) return KERNEL_DAMAGED;
            cells[i] = negative[-(level + 1)];
        }
    }
    return KERNEL_OK;
}
