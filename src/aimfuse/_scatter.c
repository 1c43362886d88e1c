/* Read or write many places of a file in one call, without the interpreter lock.
 *
 * A loop of os.pread or os.pwrite gives the lock away and takes it back for each of them; beside
 * a busy thread that costs ten times what the copy costs.
 *
 * write_buffers(fd, offsets, buffers): two tuples of equal length, int and bytes-like.
 *
 * write_places(fd, memory, ats, offsets, lengths), read_places(...): each place is `length` bytes
 * at `offset` of the file and at `at` of *memory*. The three are bytes-like, of 64-bit integers
 * in the machine's order, and equally many.
 *
 * Writing: short writes are finished. Raises OSError with the errno of the first write that
 * failed; those before it, and any prefix of that one, are in the file. Reading: all places are
 * announced to the kernel first. Returns how many were read whole, in their order, in front of
 * the first that was not, because the file ends or for an error.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <unistd.h>

static int write_piece(int fd, const char *data, long long length, long long offset)
{
    long long done = 0;
    while (done < length) {
        ssize_t wrote = pwrite(fd, data + done, (size_t)(length - done), (off_t)(offset + done));
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return wrote < 0 ? errno : ENOSPC;
        done += wrote;
    }
    return 0;
}

static int is_read_whole(int fd, char *data, long long length, long long offset)
{
    long long done = 0;
    while (done < length) {
        ssize_t got = pread(fd, data + done, (size_t)(length - done), (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return 0;
        done += got;
    }
    return 1;
}

static PyObject *none_or_error(int failed)
{
    if (!failed)
        Py_RETURN_NONE;
    errno = failed;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* Many buffers. */

struct piece {
    Py_buffer held;
    long long offset;
};

/* Return how many buffers are held now: all of them, or fewer and an exception is set. */
static Py_ssize_t take_pieces(PyObject *offsets, PyObject *buffers, struct piece *pieces,
                              Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        pieces[i].offset = PyLong_AsLongLong(PyTuple_GET_ITEM(offsets, i));
        if (pieces[i].offset == -1 && PyErr_Occurred())
            return i;
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(buffers, i), &pieces[i].held, PyBUF_SIMPLE) < 0)
            return i;
    }
    return count;
}

static void let_go(struct piece *pieces, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++)
        PyBuffer_Release(&pieces[i].held);
    PyMem_Free(pieces);
}

static PyObject *write_buffers(PyObject *self, PyObject *args)
{
    int fd, failed = 0;
    PyObject *offsets, *buffers;
    (void)self;
    if (!PyArg_ParseTuple(args, "iO!O!:write_buffers", &fd, &PyTuple_Type, &offsets,
                          &PyTuple_Type, &buffers))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(buffers);
    if (PyTuple_GET_SIZE(offsets) != count) {
        PyErr_SetString(PyExc_ValueError, "an offset for each buffer");
        return NULL;
    }
    struct piece *pieces = PyMem_New(struct piece, count ? count : 1);
    if (!pieces)
        return PyErr_NoMemory();
    Py_ssize_t taken = take_pieces(offsets, buffers, pieces, count);
    if (taken < count) {
        let_go(pieces, taken);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count && !failed; i++)
        failed = write_piece(fd, pieces[i].held.buf, pieces[i].held.len, pieces[i].offset);
    Py_END_ALLOW_THREADS
    let_go(pieces, count);
    return none_or_error(failed);
}

/* One buffer, many places. */

struct places {
    int fd;
    Py_buffer memory, ats, offsets, lengths;
    Py_ssize_t count;
};

static void release(struct places *all)
{
    PyBuffer_Release(&all->memory);
    PyBuffer_Release(&all->ats);
    PyBuffer_Release(&all->offsets);
    PyBuffer_Release(&all->lengths);
}

/* Return 0, or -1 with an exception: every place lies in the memory, and could in a file. */
static int check_places(struct places *all)
{
    Py_ssize_t bytes = all->ats.len;
    if (bytes % 8 || all->offsets.len != bytes || all->lengths.len != bytes) {
        PyErr_SetString(PyExc_ValueError, "three equally long rows of 64-bit integers");
        return -1;
    }
    const int64_t *ats = all->ats.buf, *offsets = all->offsets.buf, *lengths = all->lengths.buf;
    all->count = bytes / 8;
    for (Py_ssize_t i = 0; i < all->count; i++) {
        if (ats[i] < 0 || lengths[i] < 0 || lengths[i] > all->memory.len ||
            ats[i] > all->memory.len - lengths[i] || offsets[i] < 0 ||
            offsets[i] > INT64_MAX - lengths[i]) {
            PyErr_Format(PyExc_ValueError, "place %zd is not in the memory", i);
            return -1;
        }
    }
    return 0;
}

/* Fill *all*, whose buffers are held from then on; 0 and an exception if that cannot be. */
static int take_places(PyObject *args, const char *format, struct places *all)
{
    if (!PyArg_ParseTuple(args, format, &all->fd, &all->memory, &all->ats, &all->offsets,
                          &all->lengths))
        return 0;
    if (check_places(all) == 0)
        return 1;
    release(all);
    return 0;
}

static PyObject *write_places(PyObject *self, PyObject *args)
{
    struct places all;
    int failed = 0;
    (void)self;
    if (!take_places(args, "iy*y*y*y*:write_places", &all))
        return NULL;
    const int64_t *ats = all.ats.buf, *offsets = all.offsets.buf, *lengths = all.lengths.buf;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < all.count && !failed; i++)
        failed = write_piece(all.fd, (char *)all.memory.buf + ats[i], lengths[i], offsets[i]);
    Py_END_ALLOW_THREADS
    release(&all);
    return none_or_error(failed);
}

static PyObject *read_places(PyObject *self, PyObject *args)
{
    struct places all;
    Py_ssize_t done = 0;
    (void)self;
    if (!take_places(args, "iw*y*y*y*:read_places", &all))
        return NULL;
    const int64_t *ats = all.ats.buf, *offsets = all.offsets.buf, *lengths = all.lengths.buf;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < all.count; i++)
        if (lengths[i]) /* 0 would stand for the rest of the file. */
            (void)posix_fadvise(all.fd, offsets[i], lengths[i], POSIX_FADV_WILLNEED);
    while (done < all.count &&
           is_read_whole(all.fd, (char *)all.memory.buf + ats[done], lengths[done], offsets[done]))
        done++;
    Py_END_ALLOW_THREADS
    release(&all);
    return PyLong_FromSsize_t(done);
}

static PyMethodDef methods[] = {
    {"write_buffers", write_buffers, METH_VARARGS, "Write each buffer at its offset."},
    {"write_places", write_places, METH_VARARGS, "Write places of a buffer at their offsets."},
    {"read_places", read_places, METH_VARARGS, "Read places of a buffer from their offsets."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "aimfuse._scatter", "Many places of a file in one call.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__scatter(void)
{
    return PyModule_Create(&module);
}
