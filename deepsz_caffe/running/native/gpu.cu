/* Products on NVIDIA's processors with matrices of few different weights, which lie there as
 * running.h says: the form is the same, only the memory is another.
 *
 * A warp takes a row and TILE vectors. Each lane adds up every 32nd group, then the lanes' sums are
 * added in pairs, so a vector gives the same bits in any batch and in every run.
 *
 *   nvcc -O3 --fmad=false -shared -Xcompiler -fPIC -o _gpu.so gpu.cu
 *
 * Without nvcc, tests compile this file for the processor, as C++: a "thread" of the twin is a whole
 * warp, one lane after the other. */
#include <stddef.h>
#include <stdint.h>

#include "running.h"

enum { WARP = 32, BLOCK = 128 };

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define HERE __device__ __forceinline__
enum { LANES = 1, THREADS = WARP }; /* lanes that a thread is; threads that a warp is */

template <typename Body>
static __global__ void run(const Body body, size_t count) {
    size_t index = (size_t)blockIdx.x * BLOCK + threadIdx.x;
    if (index < count) body(index);
}

/* Call body(0), …, body(count - 1): one thread each. */
template <typename Body>
static cudaError_t launch(const Body &body, size_t count) {
    run<<<(unsigned)((count + BLOCK - 1) / BLOCK), BLOCK>>>(body, count);
    return cudaGetLastError();
}

static HERE float sum_of_lanes(float (&sums)[LANES]) {
    float sum = sums[0];
    for (int half = WARP / 2; half; half /= 2) sum += __shfl_down_sync(0xFFFFFFFFu, sum, half);
    return sum; /* lane 0's is that of all */
}
#else
#include "gpu_twin.h"
#define HERE inline
enum { LANES = WARP, THREADS = 1 };

template <typename Body>
static cudaError_t launch(const Body &body, size_t count) {
    for (size_t index = 0; index < count; index++) body(index);
    return cudaSuccess;
}

static HERE float sum_of_lanes(float (&sums)[LANES]) {
    for (int half = WARP / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
    return sums[0];
}
#endif

/* Vectors in tiles, column by column, and zeros for those that are not there and for column `cols`. */
template <int TILE>
struct interleave {
    const float *x; /* its first column here */
    size_t stride, batch;
    uint32_t cols;
    float *out;

    HERE void operator()(size_t index) const {
        size_t vector = index / TILE / (cols + 1) * TILE + index % TILE;
        uint32_t col = (uint32_t)(index / TILE % (cols + 1));
        out[index] = vector < batch && col < cols ? x[vector * stride + col] : 0;
    }
};

static HERE float weight_of(const quantized &q, uint8_t code) { return q.codebook[code]; }
static HERE float weight_of(const quantized &q, uint16_t code) { return q.codebook[code]; }
static HERE float weight_of(const quantized &, float weight) { return weight; }

template <int TILE, int WIDTH, typename Code>
struct product {
    quantized q;
    const float *inputs; /* interleaved */
    size_t batch;
    float *y; /* batch x rows */
    int more; /* add to what y holds */

    HERE void add_groups(uint32_t row, uint32_t lane, const float *tile, float (&sums)[TILE][LANES],
                         int place) const {
        const Code *codes = (const Code *)q.codes;
        for (size_t group = q.starts[row] + lane; group < q.starts[row + 1]; group += WARP) {
            const uint16_t *columns = q.columns + group * WIDTH;
            const float weight = weight_of(q, codes[group]);
            float inside[TILE] = {};
            for (int i = 0; i < WIDTH; i++)
                for (int t = 0; t < TILE; t++) inside[t] += tile[(size_t)columns[i] * TILE + t];
            for (int t = 0; t < TILE; t++) sums[t][place] += weight * inside[t];
        }
    }

    HERE void operator()(size_t index) const {
        const size_t warp = index / THREADS;
        const uint32_t row = (uint32_t)(warp % q.rows), lane = (uint32_t)(index % THREADS);
        const size_t first = warp / q.rows * TILE;
        const float *tile = inputs + first * (q.cols + 1);
        float sums[TILE][LANES] = {};
        for (int place = 0; place < LANES; place++) add_groups(row, lane + place, tile, sums, place);
        for (int t = 0; t < TILE; t++) {
            const float sum = sum_of_lanes(sums[t]);
            if (lane || first + t >= batch) continue;
            float *out = y + (first + t) * q.rows + row;
            *out = more ? *out + sum : sum;
        }
    }
};

template <int TILE, int WIDTH, typename Code>
static cudaError_t multiply_as(const quantized &q, const float *x, size_t stride, size_t batch,
                               float *inputs, float *y, int more) {
    const size_t tiles = (batch + TILE - 1) / TILE;
    cudaError_t error = launch(interleave<TILE>{x, stride, batch, q.cols, inputs},
                               tiles * TILE * (q.cols + 1));
    if (error != cudaSuccess) return error;
    return launch(product<TILE, WIDTH, Code>{q, inputs, batch, y, more}, tiles * q.rows * THREADS);
}

enum { WIDE_TILE = 8 };

template <int TILE>
static cudaError_t multiply_tiles(const quantized &q, const float *x, size_t stride, size_t batch,
                                  float *inputs, float *y, int more) {
    if (q.code_bytes == 4) return multiply_as<TILE, 1, float>(q, x, stride, batch, inputs, y, more);
    if (q.code_bytes == 2) return multiply_as<TILE, 1, uint16_t>(q, x, stride, batch, inputs, y, more);
    switch (q.width) {
        case 8: return multiply_as<TILE, 8, uint8_t>(q, x, stride, batch, inputs, y, more);
        case 4: return multiply_as<TILE, 4, uint8_t>(q, x, stride, batch, inputs, y, more);
        case 2: return multiply_as<TILE, 2, uint8_t>(q, x, stride, batch, inputs, y, more);
        default: return multiply_as<TILE, 1, uint8_t>(q, x, stride, batch, inputs, y, more);
    }
}

/* ---- what Python calls; each returns 0, or what `gpu_error` has words for ---- */

#define TRY(call)                                     \
    do {                                              \
        cudaError_t error_ = (call);                  \
        if (error_ != cudaSuccess) return (int)error_; \
    } while (0)

/* A device for a while; then the one before, which Caffe may compute on. */
struct on_device {
    int before;
    cudaError_t error;

    explicit on_device(int device) : before(0), error(cudaGetDevice(&before)) {
        if (error == cudaSuccess) error = cudaSetDevice(device);
    }
    ~on_device() { cudaSetDevice(before); }
};

template <typename T>
static cudaError_t copy_there(const T *from, size_t count, const T **to) {
    void *memory = NULL;
    cudaError_t error = cudaMalloc(&memory, count * sizeof(T) + 1); /* never nothing */
    *to = (const T *)memory;
    return error != cudaSuccess ? error
                                : cudaMemcpy(memory, from, count * sizeof(T), cudaMemcpyHostToDevice);
}

extern "C" {

int gpu_devices(int *count) {
    TRY(cudaGetDeviceCount(count));
    return 0;
}

const char *gpu_error(int error) { return cudaGetErrorString((cudaError_t)error); }

void gpu_forget(int device, quantized *there) {
    const on_device chosen(device);
    if (chosen.error != cudaSuccess) return;
    cudaFree((void *)there->starts);
    cudaFree((void *)there->columns);
    cudaFree((void *)there->codes);
    cudaFree((void *)there->codebook);
}

/* Copy a matrix, whose arrays fit each other, into a device's memory; `there` points to it then. */
int gpu_keep(int device, const quantized *from, quantized *there) {
    *there = *from;
    there->starts = NULL, there->columns = NULL, there->codes = NULL, there->codebook = NULL;
    const on_device chosen(device);
    TRY(chosen.error);
    const uint8_t *codes = NULL;
    cudaError_t error = copy_there(from->starts, (size_t)from->rows + 1, &there->starts);
    if (error == cudaSuccess)
        error = copy_there(from->columns, from->groups * from->width, &there->columns);
    if (error == cudaSuccess)
        error = copy_there((const uint8_t *)from->codes, from->groups * from->code_bytes, &codes);
    there->codes = codes;
    if (error == cudaSuccess) error = copy_there(from->codebook, from->levels, &there->codebook);
    if (error != cudaSuccess) gpu_forget(device, there);
    return (int)error;
}

/* Memory of a device for products, kept from one to the next. */
typedef struct {
    float *memory;
    size_t count;
} gpu_room;

void gpu_leave(int device, gpu_room *room) {
    const on_device chosen(device);
    if (chosen.error == cudaSuccess) cudaFree(room->memory);
    *room = gpu_room();
}

/* y[batch][rows] = x[batch][stride] . panels, side by side, all of as many rows. `x` and `y` are the
 * host's. */
int gpu_multiply(int device, const quantized *panels, size_t count, const float *x, size_t stride,
                 size_t batch, float *y, gpu_room *room) {
    uint32_t widest = 0;
    for (size_t i = 0; i < count; i++) widest = panels[i].cols > widest ? panels[i].cols : widest;
    const size_t vectors = (batch + WIDE_TILE - 1) / WIDE_TILE * WIDE_TILE;
    const size_t given = batch * stride, wanted = batch * panels->rows;
    const size_t needed = given + wanted + vectors * ((size_t)widest + 1);
    const on_device chosen(device);
    TRY(chosen.error);
    if (needed > room->count) {
        gpu_leave(device, room);
        TRY(cudaMalloc((void **)&room->memory, needed * sizeof(float)));
        room->count = needed;
    }
    float *const there = room->memory, *const sums = there + given, *const inputs = sums + wanted;
    TRY(cudaMemcpy(there, x, given * sizeof(float), cudaMemcpyHostToDevice));
    size_t offset = 0;
    for (size_t i = 0; i < count; offset += panels[i++].cols)
        TRY(batch == 1 ? multiply_tiles<1>(panels[i], there + offset, stride, batch, inputs, sums,
                                           i > 0)
                       : multiply_tiles<WIDE_TILE>(panels[i], there + offset, stride, batch, inputs,
                                                   sums, i > 0));
    TRY(cudaMemcpy(y, sums, wanted * sizeof(float), cudaMemcpyDeviceToHost));
    return 0;
}
}
