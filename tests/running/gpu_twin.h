/* Stands in for CUDA's runtime where gpu.cu is compiled for the processor: one device, whose memory is
 * the host's. DEVICES and MEMORY say how many there are, and how many bytes one allocation may have. */
#include <stdlib.h>
#include <string.h>

typedef int cudaError_t;
enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorNoDevice = 100, cudaErrorInvalidDevice };
enum { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };

static inline size_t number(const char *name, size_t usual) {
    const char *given = getenv(name);
    return given ? (size_t)strtoull(given, NULL, 10) : usual;
}

static inline cudaError_t cudaGetDeviceCount(int *count) {
    *count = (int)number("DEVICES", 1);
    return *count ? cudaSuccess : cudaErrorNoDevice;
}

static int current_device;

static inline cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return cudaSuccess;
}

static inline cudaError_t cudaSetDevice(int device) {
    if ((size_t)device >= number("DEVICES", 1)) return cudaErrorInvalidDevice;
    current_device = device;
    return cudaSuccess;
}

/* For tests: the device that is chosen now. */
extern "C" int chosen_device(void) { return current_device; }

static inline cudaError_t cudaMalloc(void **memory, size_t size) {
    *memory = size <= number("MEMORY", SIZE_MAX) ? malloc(size) : NULL;
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

static inline cudaError_t cudaFree(void *memory) {
    free(memory);
    return cudaSuccess;
}

static inline cudaError_t cudaMemcpy(void *to, const void *from, size_t size, int) {
    if (size) memcpy(to, from, size);
    return cudaSuccess;
}

static inline const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory"
           : error == cudaErrorNoDevice       ? "no CUDA-capable device is detected"
                                              : "invalid device ordinal";
}
