/* Look at many rows of numbers in one call: a loop in Python takes twenty times as long.
 *
 * count_sound(rows, row_bytes, seed): rows of so many bytes lie one behind the other; the last
 * four of each are the CRC-32C of those before them, lowest byte first, continued from *seed*.
 * Returns how many match in front of the first that does not.
 *
 * mark_blocks(chunks, chunk_bytes, volume, shift, offsets, lengths, begin): set the bit of each
 * block of 1 << shift bytes that a stretch from number *begin* on lies in. *chunks* has the bits:
 * a dictionary from (volume, number of the chunk) to a bytearray of chunk_bytes. *offsets* are
 * signed 64-bit and *lengths* unsigned 32-bit integers in the machine's order, equally many.
 * Returns the number of the first stretch that is for the caller to add, as it is empty, lies in
 * several blocks or in a chunk that is not there; or how many there are.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* Sums. */

#define POLYNOMIAL 0x82F63B78u

static uint32_t table[256];

static void make_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t sum = byte;
        for (int bit = 0; bit < 8; bit++)
            sum = sum & 1 ? sum >> 1 ^ POLYNOMIAL : sum >> 1;
        table[byte] = sum;
    }
}

static uint32_t sum_bytes(uint32_t sum, const unsigned char *at, Py_ssize_t count)
{
    while (count--)
        sum = sum >> 8 ^ table[(sum ^ *at++) & 255];
    return sum;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t sum_words(uint32_t sum, const unsigned char *at,
                                                            Py_ssize_t count)
{
    uint64_t word, wide = sum;
    for (; count >= 8; at += 8, count -= 8) {
        memcpy(&word, at, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    sum = (uint32_t)wide;
    while (count--)
        sum = _mm_crc32_u8(sum, *at++);
    return sum;
}
#endif

typedef uint32_t (*sum_function)(uint32_t, const unsigned char *, Py_ssize_t);

static sum_function fastest(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        return sum_words;
#endif
    return sum_bytes;
}

static PyObject *count_sound(PyObject *self, PyObject *args)
{
    Py_buffer rows;
    Py_ssize_t row_bytes, found = 0;
    unsigned int seed;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*nI:count_sound", &rows, &row_bytes, &seed))
        return NULL;
    if (row_bytes < 4 || rows.len % row_bytes) {
        PyBuffer_Release(&rows);
        PyErr_SetString(PyExc_ValueError, "no whole rows");
        return NULL;
    }
    const unsigned char *at = rows.buf, *end = at + rows.len;
    const sum_function sum = fastest();
    Py_BEGIN_ALLOW_THREADS
    for (; at < end; at += row_bytes, found++) {
        const unsigned char *said = at + row_bytes - 4;
        uint32_t expected = said[0] | said[1] << 8 | said[2] << 16 | (uint32_t)said[3] << 24;
        if (~sum(~seed, at, row_bytes - 4) != expected)
            break;
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&rows);
    return PyLong_FromSsize_t(found);
}

/* Blocks. */

#define KNOWN 256

/* Chunks that were found, each at the place that its number leads to. */
struct known {
    int64_t number;
    unsigned char *bits;
};

/* Return the bits of a chunk; NULL where there are none, then perhaps with an exception. */
static unsigned char *find_chunk(PyObject *chunks, Py_ssize_t chunk_bytes, long long volume,
                                 int64_t number)
{
    PyObject *key = Py_BuildValue("(LL)", volume, (long long)number);
    if (!key)
        return NULL;
    PyObject *chunk = PyDict_GetItemWithError(chunks, key);
    Py_DECREF(key);
    if (!chunk || !PyByteArray_Check(chunk) || PyByteArray_GET_SIZE(chunk) != chunk_bytes)
        return NULL;
    return (unsigned char *)PyByteArray_AS_STRING(chunk);
}

static PyObject *mark_blocks(PyObject *self, PyObject *args)
{
    PyObject *chunks, *result = NULL;
    long long volume;
    Py_ssize_t chunk_bytes, at;
    int shift;
    Py_buffer offsets, lengths;
    struct known known[KNOWN];
    (void)self;
    if (!PyArg_ParseTuple(args, "O!nLiy*y*n:mark_blocks", &PyDict_Type, &chunks, &chunk_bytes,
                          &volume, &shift, &offsets, &lengths, &at))
        return NULL;
    Py_ssize_t count = offsets.len / 8;
    if (offsets.len % 8 || lengths.len != count * 4 || at < 0 || chunk_bytes < 1 || shift < 0 ||
        shift > 62) {
        PyErr_SetString(PyExc_ValueError, "no rows of equally many numbers");
        goto out;
    }
    memset(known, 0, sizeof known);
    const int64_t grains = (int64_t)chunk_bytes * 8, *offset = offsets.buf;
    const uint32_t *length = lengths.buf;
    for (; at < count; at++) {
        if (!length[at] || offset[at] < 0 || offset[at] > INT64_MAX - (int64_t)length[at])
            break;
        int64_t first = offset[at] >> shift, last = (offset[at] + length[at] - 1) >> shift;
        if (first != last)
            break;
        int64_t number = first / grains, bit = first % grains;
        struct known *one = &known[number % KNOWN];
        if (!one->bits || one->number != number) {
            one->number = number;
            one->bits = find_chunk(chunks, chunk_bytes, volume, number);
            if (!one->bits)
                break;
        }
        one->bits[bit >> 3] |= 1 << (bit & 7);
    }
    if (!PyErr_Occurred())
        result = PyLong_FromSsize_t(at);
out:
    PyBuffer_Release(&offsets);
    PyBuffer_Release(&lengths);
    return result;
}

static PyMethodDef methods[] = {
    {"count_sound", count_sound, METH_VARARGS, "Count the rows in front of the first bad one."},
    {"mark_blocks", mark_blocks, METH_VARARGS, "Set the bits of blocks that stretches lie in."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "aimfuse._rows", "Many rows of numbers in one call.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__rows(void)
{
    make_table();
    return PyModule_Create(&module);
}
