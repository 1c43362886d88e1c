/* FUSE fallocate for pyfuse3, which has no handler for it.
 *
 * This module defines fuse_session_new. Loaded with RTLD_GLOBAL before pyfuse3, its symbol
 * wins over libfuse's own: it copies the table of operations that pyfuse3 passes, fills in
 * .fallocate, and calls the real function. A request becomes a Python call with a capsule
 * that stands for it. The capsule sees to it that the kernel gets exactly one answer:
 *   - reply() answers and marks it as answered; a second reply() does nothing;
 *   - one that is dropped without an answer answers EIO in its destructor;
 *   - one that outlives its session answers nobody (libfuse has freed the session).
 * Everything here runs with the interpreter lock held; that is what guards the variables.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define FUSE_USE_VERSION 35
#include <fuse_lowlevel.h>

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

/* From 3.17 on fuse_session_new is a macro around a symbol with other arguments. */
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
#error "fallocate is known to work with libfuse 3.10 to 3.16 only"
#endif

#define EXPORTED __attribute__((visibility("default")))
#define ERRNO_MAX 999 /* libfuse refuses to send more */

typedef struct fuse_session *(*session_new_fn)(struct fuse_args *, const struct fuse_lowlevel_ops *,
                                               size_t, void *);
typedef void (*session_destroy_fn)(struct fuse_session *);

static const char OPEN[] = "aimfuse.fallocate.open";
static const char ANSWERED[] = "aimfuse.fallocate.answered";

static PyObject *callback;        /* the registered Python callable, or NULL */
static uintptr_t session_number;  /* rises when a session begins and when it ends */
static int wired;                 /* the present session was made with our table */

/* The real function of libfuse; it stays loaded, pyfuse3 is linked against it. */
static void *
real_symbol(const char *name)
{
    void *library = dlopen("libfuse3.so.3", RTLD_NOW);
    return library == NULL ? NULL : dlsym(library, name);
}

/* Answer the request once; later calls, and calls after the session, do nothing. */
static int
answer(PyObject *capsule, int number)
{
    if (!PyCapsule_IsValid(capsule, OPEN)) {
        return 0;
    }
    fuse_req_t request = PyCapsule_GetPointer(capsule, OPEN);
    uintptr_t asked_in = (uintptr_t)PyCapsule_GetContext(capsule);
    PyCapsule_SetName(capsule, ANSWERED);
    if (asked_in != session_number) {
        return 0;
    }
    fuse_reply_err(request, number >= 0 && number <= ERRNO_MAX ? number : EIO);
    return 1;
}

static void
drop(PyObject *capsule)
{
    answer(capsule, EIO);
}

/* Hand the request to Python; what goes wrong on the way answers EIO. */
static void
call_python(fuse_req_t request, fuse_ino_t ino, int mode, off_t offset, off_t length)
{
    PyObject *capsule = PyCapsule_New(request, OPEN, drop);
    if (capsule == NULL) {
        fuse_reply_err(request, ENOMEM);
        PyErr_WriteUnraisable(callback);
        return;
    }
    PyCapsule_SetContext(capsule, (void *)session_number);
    PyObject *callee = Py_NewRef(callback);
    PyObject *result = PyObject_CallFunction(callee, "KiLLO", (unsigned long long)ino, mode,
                                             (long long)offset, (long long)length, capsule);
    if (result == NULL) {
        answer(capsule, EIO);
        PyErr_WriteUnraisable(callee);
    }
    Py_XDECREF(result);
    Py_DECREF(callee);
    Py_DECREF(capsule);
}

static void
on_fallocate(fuse_req_t request, fuse_ino_t ino, int mode, off_t offset, off_t length,
             struct fuse_file_info *fi)
{
    (void)fi;
    PyGILState_STATE gil = PyGILState_Ensure();
    if (callback == NULL) {
        /* Not ENOSYS: the kernel would never ask this mount again. */
        fuse_reply_err(request, EOPNOTSUPP);
    } else {
        call_python(request, ino, mode, offset, length);
    }
    PyGILState_Release(gil);
}

EXPORTED struct fuse_session *
fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *op, size_t op_size,
                 void *userdata)
{
    session_new_fn real = (session_new_fn)real_symbol("fuse_session_new");
    if (real == NULL) {
        return NULL;
    }
    struct fuse_lowlevel_ops table;
    memset(&table, 0, sizeof(table));
    memcpy(&table, op, op_size < sizeof(table) ? op_size : sizeof(table));
    table.fallocate = on_fallocate;
    struct fuse_session *session = real(args, &table, sizeof(table), userdata);
    session_number++;
    wired = session != NULL;
    return session;
}

EXPORTED void
fuse_session_destroy(struct fuse_session *session)
{
    session_number++; /* Requests still open must not touch what is freed below. */
    wired = 0;
    session_destroy_fn real = (session_destroy_fn)real_symbol("fuse_session_destroy");
    if (real != NULL) {
        real(session);
    }
}

static PyObject *
py_set_callback(PyObject *module, PyObject *callable)
{
    (void)module;
    if (callable != Py_None && !PyCallable_Check(callable)) {
        PyErr_SetString(PyExc_TypeError, "a callable or None is wanted");
        return NULL;
    }
    Py_XSETREF(callback, callable == Py_None ? NULL : Py_NewRef(callable));
    Py_RETURN_NONE;
}

static PyObject *
py_reply(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *capsule;
    int number;
    if (!PyArg_ParseTuple(args, "O!i", &PyCapsule_Type, &capsule, &number)) {
        return NULL;
    }
    return PyBool_FromLong(answer(capsule, number));
}

static PyObject *
py_wired(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    return PyBool_FromLong(wired);
}

static PyMethodDef methods[] = {
    {"set_callback", py_set_callback, METH_O,
     "Call this with (ino, mode, offset, length, request) for each fallocate; None: refuse all."},
    {"reply", py_reply, METH_VARARGS,
     "Answer a request with an errno, 0 for success; False if it had its answer already."},
    {"wired", py_wired, METH_NOARGS, "Tell whether the present mount asks the callback."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_fallocate",
    .m_doc = "FUSE fallocate for pyfuse3; to be loaded with RTLD_GLOBAL before it.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__fallocate(void)
{
    return PyModule_Create(&definition);
}
