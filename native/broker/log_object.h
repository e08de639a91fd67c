// The log as a Python object: what a broker of C++ takes its cb_log from.
#ifndef COMMBENCH_LOG_OBJECT_H
#define COMMBENCH_LOG_OBJECT_H

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>

#include "log.h"

namespace broker {

[[noreturn]] inline void raise_os_error(int64_t rc, const char *why) {
    PyObject *args = Py_BuildValue("(is)", static_cast<int>(-rc), why);
    PyErr_SetObject(PyExc_OSError, args);
    Py_XDECREF(args);
    throw nanobind::python_error();
}

class Log {
  public:
    Log(const std::string &directory, uint64_t segment_bytes, uint32_t max_batch_bytes,
        uint64_t flush_every) {
        char error[CB_LOG_ERROR] = "";
        cb_log_options options = {directory.c_str(), segment_bytes, max_batch_bytes, flush_every};
        int rc;
        {
            nanobind::gil_scoped_release release;
            rc = cb_log_open(&options, &log_, error);
        }
        if (rc < 0) raise_os_error(rc, (directory + ": " + error).c_str());
    }
    ~Log() { if (log_) cb_log_close(log_); }
    Log(const Log &) = delete;

    cb_log *get() const {
        if (!log_) throw nanobind::value_error("this log is closed");
        return log_;
    }
    // Does nothing when it is closed already. OSError when what the policy owes cannot be flushed.
    void close() {
        cb_log *log = log_;
        int rc = 0;
        log_ = nullptr;
        if (log) {
            nanobind::gil_scoped_release release;
            rc = cb_log_close(log);
        }
        if (rc < 0) raise_os_error(rc, "closing the log: what was not flushed could not be");
    }
    // `call` without the GIL; OSError when it returns less than 0.
    template <typename Call> int64_t run(Call call) {
        cb_log *log = get();
        int64_t rc;
        {
            nanobind::gil_scoped_release release;
            rc = call(log);
        }
        if (rc < 0) raise_os_error(rc, cb_log_last_error(log));
        return rc;
    }

  private:
    cb_log *log_ = nullptr;
};

}  // namespace broker

#endif
