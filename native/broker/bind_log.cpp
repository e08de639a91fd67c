// Record batches and the log for Python: for tests, and for a broker whose loop is Python.
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <cerrno>
#include <map>
#include <optional>

#include "bind.h"
#include "crc32c.h"
#include "log_object.h"

using namespace nb::literals;

namespace {

using broker::Log;
using Numbers = std::map<std::string, int64_t>;

#define READABLE "bytes | bytearray | memoryview"
#define WRITABLE "bytearray | memoryview"

// Memory of a Python object, held as long as this is.
class Buffer {
  public:
    Buffer(nb::handle object, int flags) {
        if (PyObject_GetBuffer(object.ptr(), &view_, flags)) throw nb::python_error();
    }
    ~Buffer() { PyBuffer_Release(&view_); }
    Buffer(const Buffer &) = delete;
    void *bytes() const { return view_.buf; }
    size_t nbytes() const { return static_cast<size_t>(view_.len); }

  private:
    Py_buffer view_;
};

// A batch that grows in a buffer of Python's.
class RecordBatch {
  public:
    explicit RecordBatch(nb::handle buffer) : memory_(buffer, PyBUF_WRITABLE) { begin(); }
    void begin() { cb_batch_begin(&batch_, memory_.bytes(), memory_.nbytes()); }
    bool add(int64_t timestamp, nb::handle value) {
        Buffer from(value, PyBUF_SIMPLE);
        return cb_batch_add(&batch_, timestamp, from.bytes(), from.nbytes()) == 0;
    }
    size_t seal(int64_t producer_id, int16_t producer_epoch, int32_t base_sequence) {
        batch_.producer_id = producer_id;
        batch_.producer_epoch = producer_epoch;
        batch_.base_sequence = base_sequence;
        return cb_batch_seal(&batch_);
    }
    const cb_batch &get() const { return batch_; }

  private:
    Buffer memory_;
    cb_batch batch_;
};

Numbers batch_info(nb::handle bytes) {
    Buffer from(bytes, PyBUF_SIMPLE);
    cb_batch_info i;
    int rc = cb_batch_check(from.bytes(), from.nbytes(), &i);
    if (rc < 0) broker::raise_os_error(rc, i.problem);
    return {{"nbytes", static_cast<int64_t>(i.nbytes)}, {"records", i.records},
            {"base_offset", i.base_offset},             {"base_timestamp", i.base_timestamp},
            {"max_timestamp", i.max_timestamp},         {"producer_id", i.producer_id},
            {"producer_epoch", i.producer_epoch},       {"base_sequence", i.base_sequence}};
}

nb::list batch_records(nb::handle bytes) {
    Buffer from(bytes, PyBUF_SIMPLE);
    nb::list found;
    cb_records r;
    cb_record record;
    int rc = cb_records_begin(&r, from.bytes(), from.nbytes());
    while (rc >= 0 && (rc = cb_records_next(&r, &record)) == 1) {
        nb::object value = nb::none();
        if (record.value) value = nb::bytes(record.value, record.nbytes);
        found.append(nb::make_tuple(record.offset, record.timestamp, value));
    }
    if (rc < 0) broker::raise_os_error(rc, r.info.problem);
    return found;
}

Numbers counters(const cb_log_counters *c) {
    std::map<std::string, uint64_t> counted = {
        {"batches", c->batches},       {"records", c->records},
        {"nbytes", c->nbytes},         {"crc_nbytes", c->crc_nbytes},
        {"rolls", c->rolls},           {"read_nbytes", c->read_nbytes},
        {"fdatasyncs", c->fdatasyncs}, {"directory_syncs", c->directory_syncs},
        {"clock_went_back", c->clock_went_back}};
    return Numbers(counted.begin(), counted.end());
}

void bind_batch(nb::module_ &m) {
    nb::class_<RecordBatch>(m, "RecordBatch", "A Kafka record batch that grows in a buffer; see "
                                              "native/broker/batch.h.")
        .def(nb::init<nb::handle>(), "buffer"_a,
             nb::sig("def __init__(self, buffer: " WRITABLE ") -> None"))
        .def("begin", &RecordBatch::begin, "Begin again, with no record.")
        .def("add", &RecordBatch::add, "timestamp"_a, "value"_a,
             nb::sig("def add(self, timestamp: int, value: " READABLE ") -> bool"),
             "Append a record; False when the batch is full.")
        .def("seal", &RecordBatch::seal, "producer_id"_a = -1, "producer_epoch"_a = -1,
             "base_sequence"_a = -1,
             "Write header and CRC; the bytes of the batch, 0 when it has no record.")
        .def_prop_ro("records", [](const RecordBatch &self) { return self.get().records; })
        .def_prop_ro("nbytes", [](const RecordBatch &self) { return self.get().nbytes; });

    m.def("batch_info", &batch_info, "batch"_a,
          nb::sig("def batch_info(batch: " READABLE ") -> dict[str, int]"),
          "The header of a batch whose CRC is right. OSError: ENODATA not whole, EBADMSG not a batch.");
    m.def("batch_records", &batch_records, "batch"_a,
          nb::sig("def batch_records(batch: " READABLE ") -> list[tuple[int, int, bytes | None]]"),
          "(offset, timestamp, value) of each record. OSError as batch_info(); the CRC is not "
          "checked.");
    m.def("crc32c", [](nb::handle bytes, uint32_t crc, bool table) {
        Buffer from(bytes, PyBUF_SIMPLE);
        return (table ? cb_crc32c_table : cb_crc32c)(crc, from.bytes(), from.nbytes());
    }, "data"_a, "crc"_a = 0, "table"_a = false,
       nb::sig("def crc32c(data: " READABLE ", crc: int = 0, table: bool = False) -> int"),
       "CRC-32C, going on from `crc`; by tables even where the processor has an instruction.");
    m.def("crc32c_kind", &cb_crc32c_kind, "What crc32c() runs on: sse4.2, armv8 or table.");
}

}  // namespace

void bind_log(nb::module_ &m) {
    bind_batch(m);

    nb::class_<cb_log_recovery>(m, "LogRecovery", "What opening a log found and cut off.")
        .def_ro("segments", &cb_log_recovery::segments)
        .def_ro("batches", &cb_log_recovery::batches)
        .def_ro("records", &cb_log_recovery::records)
        .def_ro("nbytes", &cb_log_recovery::nbytes)
        .def_ro("cut_nbytes", &cb_log_recovery::cut_nbytes)
        .def_ro("lost_batches", &cb_log_recovery::lost_batches)
        .def_ro("lost_records", &cb_log_recovery::lost_records)
        .def_ro("removed_segments", &cb_log_recovery::removed_segments)
        .def_prop_ro("reason", [](const cb_log_recovery &self) { return self.reason; });

    nb::class_<Log>(m, "Log", "The log of a partition; OSError when a call fails. See "
                              "native/broker/log.h.")
        .def(nb::init<const std::string &, uint64_t, uint32_t, uint64_t>(), "directory"_a,
             nb::kw_only(), "segment_bytes"_a = CB_LOG_SEGMENT_BYTES,
             "max_batch_bytes"_a = CB_LOG_BATCH_BYTES, "flush_every"_a = 0)
        .def("append", [](Log &self, nb::handle batch) {
            Buffer from(batch, PyBUF_WRITABLE);
            return self.run([&](cb_log *l) { return cb_log_append(l, from.bytes(), from.nbytes()); });
        }, "batch"_a, nb::sig("def append(self, batch: " WRITABLE ") -> int"),
           "Append one batch as its leader; its base offset, also set in the batch.")
        .def("append_replica", [](Log &self, nb::handle batches) {
            Buffer from(batches, PyBUF_SIMPLE);
            return self.run([&](cb_log *l) {
                return cb_log_append_replica(l, from.bytes(), from.nbytes());
            });
        }, "batches"_a, nb::sig("def append_replica(self, batches: " READABLE ") -> int"),
           "Append what a leader's read() gave; the next offset.")
        .def("flush", [](Log &self) { self.run(cb_log_flush); }, "fdatasync what is not flushed.")
        .def("read", [](Log &self, nb::handle buffer, int64_t offset, std::optional<int64_t> limit) {
            Buffer to(buffer, PyBUF_WRITABLE);
            int64_t next = offset, end = limit.value_or(INT64_MAX);
            int64_t nbytes = self.run([&](cb_log *l) {
                return cb_log_read(l, offset, end, to.bytes(), to.nbytes(), &next);
            });
            return nb::make_tuple(nbytes, next);
        }, "buffer"_a, "offset"_a, "limit"_a.none() = nb::none(),
           nb::sig("def read(self, buffer: " WRITABLE ", offset: int, limit: int | None = None) -> "
                   "tuple[int, int]"),
           "Copy whole batches from `offset` on, below `limit`; (bytes, offset behind them).")
        .def("truncate", [](Log &self, int64_t offset) {
            return self.run([&](cb_log *l) { return cb_log_truncate(l, offset); });
        }, "offset"_a, "Drop every batch with a record at or behind `offset`; the next offset.")
        .def("close", &Log::close)
        .def_prop_ro("first_offset", [](Log &self) { return cb_log_first_offset(self.get()); })
        .def_prop_ro("next_offset", [](Log &self) { return cb_log_next_offset(self.get()); })
        .def_prop_ro("flushed_offset", [](Log &self) { return cb_log_flushed_offset(self.get()); })
        .def_prop_ro("latest_timestamp", [](Log &self) {
            return cb_log_latest_timestamp(self.get());
        })
        .def_prop_rw("high_watermark", [](Log &self) { return cb_log_high_watermark(self.get()); },
                     [](Log &self, int64_t offset) {
            self.run([&](cb_log *l) { return cb_log_set_high_watermark(l, offset); });
        })
        .def_prop_ro("recovery", [](Log &self) { return *cb_log_recovered(self.get()); })
        .def_prop_ro("counters", [](Log &self) { return counters(cb_log_counted(self.get())); });
}
