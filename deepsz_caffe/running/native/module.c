/* Python's way into the kernels. Arguments are checked for size only: kernels.py knows the types.
 * The interpreter lock is released while a kernel runs. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "running.h"

#define COUNT(view) ((size_t)(view).len / 4)

static void release_all(Py_buffer *const views[], size_t count) {
    for (size_t i = 0; i < count; i++) PyBuffer_Release(views[i]);
}
#define RELEASE(...)                                                                           \
    release_all((Py_buffer *const[]){__VA_ARGS__},                                             \
                sizeof((Py_buffer *const[]){__VA_ARGS__}) / sizeof(Py_buffer *))

static PyObject *fail(ptrdiff_t error) {
    if (error == RUNNING_MEMORY) return PyErr_NoMemory();
    PyErr_SetString(PyExc_ValueError, "the arrays are damaged or do not fit each other");
    return NULL;
}

/* A matrix as Python passes it: (rows, cols, width, code_bytes, starts, columns, codes, codebook). */
typedef struct {
    quantized q;
    unsigned int rows, cols, width, code_bytes;
    Py_buffer starts, columns, codes, codebook;
} matrix;

#define MATRIX "(IIIIy*y*y*y*)"
#define FIELDS(m)                                                                         \
    &(m).rows, &(m).cols, &(m).width, &(m).code_bytes, &(m).starts, &(m).columns, &(m).codes, \
        &(m).codebook

static void release(matrix *m) {
    RELEASE(&m->starts, &m->columns, &m->codes, &m->codebook);
}

/* Whether the arrays have the sizes that they need. */
static int fits(matrix *m, uint32_t first, uint32_t last) {
    uint32_t bytes = m->code_bytes, width = m->width;
    if (m->rows == 0 || m->cols == 0 || m->cols > MOST_COLUMNS || first > last || last > m->rows ||
        (bytes != 1 && bytes != 2 && bytes != 4) ||
        (width != 1 && width != 2 && width != 4 && width != 8) || (width > 1 && bytes > 1))
        return 0;
    size_t groups = (size_t)m->codes.len / bytes;
    m->q = (quantized){m->rows, m->cols,           width,           bytes,
                       (uint32_t)COUNT(m->codebook), groups,          m->starts.buf,
                       m->columns.buf, m->codes.buf, m->codebook.buf};
    return COUNT(m->starts) == (size_t)m->rows + 1 &&
           (size_t)m->columns.len == 2 * groups * width &&
           m->q.starts[0] == 0 && m->q.starts[m->rows] == groups;
}

static PyObject *py_instruction_set(PyObject *self, PyObject *args) {
    (void)self, (void)args;
    return PyLong_FromLong(instruction_set());
}

static PyObject *py_multiply(PyObject *self, PyObject *args) {
    (void)self;
    matrix m;
    Py_buffer x, bias, y;
    unsigned int first, last;
    unsigned long long batch, offset, x_stride, y_stride;
    int more, set, error = RUNNING_DAMAGED;
    if (!PyArg_ParseTuple(args, MATRIX "IIy*KKKy*w*Kpi", FIELDS(m), &first, &last, &x, &batch,
                          &offset, &x_stride, &bias, &y, &y_stride, &more, &set))
        return NULL;
    size_t given = COUNT(x), room = COUNT(y);
    if (fits(&m, first, last) && batch > 0 && batch <= given && x_stride <= given &&
        y_stride <= room && offset <= given && set >= PORTABLE && set <= instruction_set() &&
        (batch - 1) * x_stride + offset + m.cols <= given &&
        (batch - 1) * y_stride + m.rows <= room && (bias.len == 0 || COUNT(bias) == m.rows)) {
        Py_BEGIN_ALLOW_THREADS;
        error = multiply(&m.q, first, last, (const float *)x.buf + offset, batch, x_stride,
                         bias.len ? bias.buf : NULL, y.buf, y_stride, more, set);
        Py_END_ALLOW_THREADS;
    }
    release(&m);
    RELEASE(&x, &bias, &y);
    if (error) return fail(error);
    Py_RETURN_NONE;
}

static PyObject *py_examine(PyObject *self, PyObject *args) {
    (void)self;
    matrix m;
    unsigned int first, last;
    unsigned long long offset, stride;
    uint64_t weights = 0, digest = 0;
    int error = RUNNING_DAMAGED;
    if (!PyArg_ParseTuple(args, MATRIX "IIKK", FIELDS(m), &first, &last, &offset, &stride))
        return NULL;
    if (fits(&m, first, last)) {
        Py_BEGIN_ALLOW_THREADS;
        error = examine(&m.q, first, last, offset, stride, &weights, &digest);
        Py_END_ALLOW_THREADS;
    }
    release(&m);
    if (error) return fail(error);
    return Py_BuildValue("KK", (unsigned long long)weights, (unsigned long long)digest);
}

static PyObject *py_densify(PyObject *self, PyObject *args) {
    (void)self;
    matrix m;
    Py_buffer out;
    unsigned int first, last;
    unsigned long long stride, offset;
    int error = RUNNING_DAMAGED;
    if (!PyArg_ParseTuple(args, MATRIX "IIKKw*", FIELDS(m), &first, &last, &stride, &offset, &out))
        return NULL;
    size_t room = COUNT(out);
    if (fits(&m, first, last) && stride <= room && offset <= room &&
        (first == last || (last - first - 1) * stride + offset + m.cols <= room)) {
        Py_BEGIN_ALLOW_THREADS;
        densify(&m.q, first, last, stride, (float *)out.buf + offset);
        Py_END_ALLOW_THREADS;
        error = RUNNING_OK;
    }
    release(&m);
    PyBuffer_Release(&out);
    if (error) return fail(error);
    Py_RETURN_NONE;
}

static PyObject *py_count_groups(PyObject *self, PyObject *args) {
    (void)self;
    matrix m;
    Py_buffer counts;
    unsigned int first, last;
    int error = RUNNING_DAMAGED;
    if (!PyArg_ParseTuple(args, MATRIX "IIw*", FIELDS(m), &first, &last, &counts)) return NULL;
    if (fits(&m, first, last) && m.width == 1 && m.code_bytes == 1 && m.q.levels <= MOST_SMALL &&
        COUNT(counts) == 4 * (size_t)m.rows) {
        Py_BEGIN_ALLOW_THREADS;
        count_groups(&m.q, first, last, counts.buf);
        Py_END_ALLOW_THREADS;
        error = RUNNING_OK;
    }
    release(&m);
    PyBuffer_Release(&counts);
    if (error) return fail(error);
    Py_RETURN_NONE;
}

static PyObject *py_fill_groups(PyObject *self, PyObject *args) {
    (void)self;
    matrix m, to;
    unsigned int first, last;
    int error = RUNNING_DAMAGED;
    if (!PyArg_ParseTuple(args, MATRIX "II(IIIIy*w*w*y*)", FIELDS(m), &first, &last, FIELDS(to)))
        return NULL;
    if (fits(&m, first, last) && fits(&to, first, last) && m.width == 1 && m.code_bytes == 1 &&
        to.code_bytes == 1 && m.q.levels <= MOST_SMALL && to.rows == m.rows) {
        Py_BEGIN_ALLOW_THREADS;
        error = fill_groups(&m.q, first, last, &to.q, to.columns.buf, to.codes.buf);
        Py_END_ALLOW_THREADS;
    }
    release(&m);
    release(&to);
    if (error) return fail(error);
    Py_RETURN_NONE;
}

/* A chunk as Python passes it. */
typedef struct {
    Py_buffer steps, codes;
    unsigned int per_byte, symbols, cols;
    unsigned long long first, cells;
} chunk_view;

#define CHUNK "y*y*IIKKI"
#define CHUNK_FIELDS(c)                                                                        \
    &(c).steps, &(c).codes, &(c).per_byte, &(c).symbols, &(c).first, &(c).cells, &(c).cols

/* Whether the arrays have the sizes that they need. */
static int chunk_fits(const chunk_view *given, chunk *found) {
    size_t entries = (size_t)given->steps.len, per_byte = given->per_byte;
    *found = (chunk){given->steps.buf, given->codes.buf, entries,      given->per_byte,
                     given->symbols,   given->first,     given->cells, given->cols};
    return given->cells > 0 && given->cols > 0 && given->cols <= MOST_COLUMNS &&
           (size_t)given->codes.len ==
               (per_byte ? (entries + per_byte - 1) / per_byte : 2 * entries);
}

static PyObject *py_list_packed(PyObject *self, PyObject *args) {
    (void)self;
    chunk_view given;
    chunk from;
    Py_buffer columns, listed, counts;
    size_t count = 0;
    int error = RUNNING_DAMAGED;
    if (!PyArg_ParseTuple(args, CHUNK "w*w*w*", CHUNK_FIELDS(given), &columns, &listed, &counts))
        return NULL;
    size_t bytes = given.symbols > MOST_SMALL ? 2 : 1;
    if (chunk_fits(&given, &from) && (size_t)columns.len == 2 * from.entries &&
        (size_t)listed.len == bytes * from.entries &&
        COUNT(counts) == (from.first + from.cells - 1) / from.cols - from.first / from.cols + 1) {
        Py_BEGIN_ALLOW_THREADS;
        error = list_packed(&from, columns.buf, listed.buf, counts.buf, &count);
        Py_END_ALLOW_THREADS;
    }
    RELEASE(&given.steps, &given.codes, &columns, &listed, &counts);
    return error ? fail(error) : PyLong_FromSize_t(count);
}

static PyObject *py_bucket_room(PyObject *self, PyObject *args) {
    (void)self;
    unsigned int cols;
    if (!PyArg_ParseTuple(args, "I", &cols)) return NULL;
    return PyLong_FromSize_t(bucket_room(cols));
}

/* The state is numbers of 64 bits: the row, groups written, and of each level the columns held. */
static PyObject *py_group_packed(PyObject *self, PyObject *args) {
    (void)self;
    chunk_view given;
    chunk from;
    Py_buffer row, state, columns, codes, ends;
    unsigned int width, first_row, last_row;
    int finish, error = RUNNING_DAMAGED;
    if (!PyArg_ParseTuple(args, CHUNK "IIIpw*w*w*w*w*", CHUNK_FIELDS(given), &width, &first_row,
                          &last_row, &finish, &row, &state, &columns, &codes, &ends))
        return NULL;
    size_t groups = (size_t)codes.len, levels = given.symbols;
    if (chunk_fits(&given, &from) && (width == 1 || width == 2 || width == 4 || width == 8) &&
        first_row <= last_row && levels <= MOST_SMALL &&
        (size_t)row.len == 2 * levels * bucket_room(given.cols) &&
        (size_t)state.len == 8 * (2 + levels) && COUNT(ends) == last_row - first_row &&
        (size_t)columns.len == 2 * groups * width) {
        uint64_t *numbers = state.buf;
        row_state held = {row.buf, numbers + 2, numbers[0], numbers[1]};
        quantized to = {0, given.cols, width, 1, given.symbols, groups, NULL, NULL, NULL, NULL};
        Py_BEGIN_ALLOW_THREADS;
        error = group_packed(&from, first_row, last_row, finish, &held, &to, columns.buf, codes.buf,
                             ends.buf);
        Py_END_ALLOW_THREADS;
        numbers[0] = held.row;
        numbers[1] = held.groups;
    }
    RELEASE(&given.steps, &given.codes, &row, &state, &columns, &codes, &ends);
    if (error) return fail(error);
    Py_RETURN_NONE;
}

static PyObject *py_find_levels(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer values, levels, codes;
    ptrdiff_t found = RUNNING_DAMAGED;
    if (!PyArg_ParseTuple(args, "y*w*w*", &values, &levels, &codes)) return NULL;
    if ((size_t)codes.len == 2 * COUNT(values) && COUNT(levels) <= 65536) {
        Py_BEGIN_ALLOW_THREADS;
        found = find_levels(values.buf, COUNT(values), (uint32_t)COUNT(levels), levels.buf,
                            codes.buf);
        Py_END_ALLOW_THREADS;
    }
    RELEASE(&values, &levels, &codes);
    return found < 0 ? fail(found) : PyLong_FromSsize_t(found);
}

static PyMethodDef methods[] = {
    {"instruction_set", py_instruction_set, METH_NOARGS, NULL},
    {"multiply", py_multiply, METH_VARARGS, NULL},
    {"examine", py_examine, METH_VARARGS, NULL},
    {"densify", py_densify, METH_VARARGS, NULL},
    {"count_groups", py_count_groups, METH_VARARGS, NULL},
    {"fill_groups", py_fill_groups, METH_VARARGS, NULL},
    {"bucket_room", py_bucket_room, METH_VARARGS, NULL},
    {"group_packed", py_group_packed, METH_VARARGS, NULL},
    {"list_packed", py_list_packed, METH_VARARGS, NULL},
    {"find_levels", py_find_levels, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&definition); }
