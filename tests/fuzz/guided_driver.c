// Run libFuzzer in a process that is a Python interpreter: each input goes to `run` of the module that
// GUIDED_MODULE names. An exception from it is a fault and ends the process by abort, so that libFuzzer
// keeps the input. tests/fuzz/guided.py compiles and starts this program.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>

static PyObject *run;

static void fail(void) {
    PyErr_Print();
    abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    PyConfig config;
    (void)argc;
    (void)argv;
    PyConfig_InitPythonConfig(&config);
    config.parse_argv = 0; // the arguments are for libFuzzer
    config.install_signal_handlers = 0; // libFuzzer handles signals
    signal(SIGPIPE, SIG_IGN);           // as Python does: a write to a closed socket is an error, not the end
    PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, getenv("GUIDED_PYTHON"));
    if (!PyStatus_Exception(status)) {
        status = Py_InitializeFromConfig(&config);
    }
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status)) {
        Py_ExitStatusException(status);
    }
    PyObject *module = PyImport_ImportModule(getenv("GUIDED_MODULE"));
    run = module == NULL ? NULL : PyObject_GetAttrString(module, "run");
    if (run == NULL) {
        fail();
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    PyObject *result = PyObject_CallFunction(run, "y#", (const char *)data, (Py_ssize_t)size);
    if (result == NULL) {
        fail();
    }
    Py_DECREF(result);
    return 0;
}
