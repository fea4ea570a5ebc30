/* Python's way into the kernels. Arguments are checked for size only: kernels.py knows the types.
 * The interpreter lock is released while a kernel runs. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

#define BITS(view) ((uint32_t *)(view).buf)
#define COUNT(view) ((size_t)(view).len / 4)

static PyObject *fail(int error) {
    if (error == KERNEL_MEMORY) return PyErr_NoMemory();
    PyErr_SetString(PyExc_ValueError, "the stream is damaged");
    return NULL;
}

/* The matrix that is walked may be the transpose of the one in memory. */
static int check_shape(const Py_buffer *matrix, const mixing_shape *shape) {
    uint64_t cells = (uint64_t)shape->rows * shape->cols;
    if (cells == 0 || cells != COUNT(*matrix) || shape->stride >= shape->cols ||
        shape->low_bits > 8 || shape->largest[0] > 1u << 21 || shape->largest[1] > 1u << 21) {
        PyErr_SetString(PyExc_ValueError, "the shape does not fit");
        return 0;
    }
    return 1;
}

static PyObject *py_mixing_encode(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer matrix;
    mixing_shape shape;
    int transposed;
    if (!PyArg_ParseTuple(args, "y*pIIIiIII", &matrix, &transposed, &shape.rows, &shape.cols,
                          &shape.stride, &shape.prior, &shape.low_bits, &shape.largest[0],
                          &shape.largest[1]))
        return NULL;
    PyObject *stream = NULL;
    if (check_shape(&matrix, &shape)) {
        /* Two bytes a decision of least probability; no level takes over 100 decisions. */
        size_t room = COUNT(matrix) + 4096;
        ptrdiff_t length = KERNEL_FULL;
        uint8_t *out = NULL;
        Py_BEGIN_ALLOW_THREADS;
        while (length == KERNEL_FULL) {
            free(out);
            out = malloc(room);
            if (!out) {
                length = KERNEL_MEMORY;
                break;
            }
            length = mixing_encode(&shape, matrix.buf,
                                   transposed ? 1 : (ptrdiff_t)shape.cols,
                                   transposed ? (ptrdiff_t)shape.rows : 1, out, room);
            room *= 4;
        }
        Py_END_ALLOW_THREADS;
        if (length >= 0)
            stream = PyBytes_FromStringAndSize((const char *)out, length);
        else
            fail((int)length);
        free(out);
    }
    PyBuffer_Release(&matrix);
    return stream;
}

static PyObject *py_mixing_decode(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer stream, matrix;
    mixing_shape shape;
    int transposed, error = KERNEL_DAMAGED;
    if (!PyArg_ParseTuple(args, "y*w*pIIIiIII", &stream, &matrix, &transposed, &shape.rows,
                          &shape.cols, &shape.stride, &shape.prior, &shape.low_bits,
                          &shape.largest[0], &shape.largest[1]))
        return NULL;
    int fits = check_shape(&matrix, &shape);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        error = mixing_decode(&shape, stream.buf, (size_t)stream.len, matrix.buf,
                              transposed ? 1 : (ptrdiff_t)shape.cols,
                              transposed ? (ptrdiff_t)shape.rows : 1);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&stream);
    PyBuffer_Release(&matrix);
    if (!fits) return NULL;
    if (error) return fail(error);
    Py_RETURN_NONE;
}

static PyObject *py_values_of_levels(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer cells, positive, negative;
    int error;
    if (!PyArg_ParseTuple(args, "w*y*y*", &cells, &positive, &negative)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    error = values_of_levels(BITS(cells), COUNT(cells), BITS(positive), (uint32_t)COUNT(positive),
                             BITS(negative), (uint32_t)COUNT(negative));
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&cells);
    PyBuffer_Release(&positive);
    PyBuffer_Release(&negative);
    if (error) return fail(error);
    Py_RETURN_NONE;
}

static PyObject *pair_of(tally found) {
    return Py_BuildValue("KK", (unsigned long long)found.digest,
                         (unsigned long long)found.nonzeros);
}

static PyObject *py_digest_weights(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer weights;
    unsigned long long first = 0;
    tally found;
    if (!PyArg_ParseTuple(args, "y*|K", &weights, &first)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    found = digest_weights(BITS(weights), COUNT(weights), first);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&weights);
    return pair_of(found);
}

static PyObject *py_scatter_steps(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer data, index, out;
    tally found;
    int error;
    if (!PyArg_ParseTuple(args, "y*y*w*", &data, &index, &out)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    error = scatter_steps(BITS(data), COUNT(data), index.buf, (size_t)index.len, BITS(out),
                          COUNT(out), &found);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&data);
    PyBuffer_Release(&index);
    PyBuffer_Release(&out);
    return error ? fail(error) : pair_of(found);
}

static size_t packed_bytes(size_t entries, uint32_t per_byte) {
    return per_byte ? (entries + per_byte - 1) / per_byte : 2 * entries;
}

static PyObject *py_scatter_packed(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer steps, codes, values, out;
    unsigned int per_byte;
    unsigned long long first;
    tally found;
    int error = KERNEL_DAMAGED;
    if (!PyArg_ParseTuple(args, "y*y*Iy*w*K", &steps, &codes, &per_byte, &values, &out, &first))
        return NULL;
    size_t entries = (size_t)steps.len, symbols = COUNT(values);
    if (symbols <= 65536 && (size_t)codes.len == packed_bytes(entries, per_byte)) {
        Py_BEGIN_ALLOW_THREADS;
        error = scatter_packed(steps.buf, codes.buf, entries, per_byte, (uint32_t)symbols,
                               BITS(values), BITS(out), COUNT(out), first, &found);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&steps);
    PyBuffer_Release(&codes);
    PyBuffer_Release(&values);
    PyBuffer_Release(&out);
    return error ? fail(error) : pair_of(found);
}

static PyObject *py_join_planes(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer planes;
    if (!PyArg_ParseTuple(args, "y*", &planes)) return NULL;
    PyObject *joined = PyBytes_FromStringAndSize(NULL, planes.len);
    if (joined) {
        uint8_t *out = (uint8_t *)PyBytes_AS_STRING(joined);
        Py_BEGIN_ALLOW_THREADS;
        join_planes(planes.buf, (size_t)planes.len, out);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&planes);
    return joined;
}

static PyMethodDef methods[] = {
    {"mixing_encode", py_mixing_encode, METH_VARARGS, NULL},
    {"mixing_decode", py_mixing_decode, METH_VARARGS, NULL},
    {"values_of_levels", py_values_of_levels, METH_VARARGS, NULL},
    {"digest_weights", py_digest_weights, METH_VARARGS, NULL},
    {"scatter_steps", py_scatter_steps, METH_VARARGS, NULL},
    {"scatter_packed", py_scatter_packed, METH_VARARGS, NULL},
    {"join_planes", py_join_planes, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void) {
    mixing_init();
    return PyModule_Create(&definition);
}
