// The kafka producer and librdkafka's mock cluster for Python.
#include "../bind.h"

#include <dlfcn.h>

#include <cerrno>
#include <stdexcept>
#include <utility>

#include "broker/times_object.h"
#include "consumer.h"
#include "producer.h"

// nanobind knows a type by its name, also across anonymous namespaces.
namespace {

using Settings = std::vector<std::pair<std::string, std::string>>;

// The functions of a librdkafka that is loaded already; it is never unloaded.
struct KafkaLibrary {
    cb_kafka_library calls{};
    explicit KafkaLibrary(const std::string &file) {
        void *handle = dlopen(file.c_str(), RTLD_NOW | RTLD_NOLOAD);
        if (!handle) throw std::runtime_error(file + ": is not a library that is loaded");
#define CB_KAFKA_FIND(type, name, arguments) find(handle, "rd_kafka_" #name, calls.name##_);
        CB_KAFKA_CALLS(CB_KAFKA_FIND)
    }
    template <typename F>
    static void find(void *handle, const char *name, F *&call) {
        call = reinterpret_cast<F *>(dlsym(handle, name));
        if (!call) throw std::runtime_error(std::string("this librdkafka has no ") + name);
    }
};

std::vector<const char *> pointers(const Settings &settings) {
    std::vector<const char *> found;
    for (const auto &[name, value] : settings) {
        found.push_back(name.c_str());
        found.push_back(value.c_str());
    }
    return found;
}

struct KafkaOutcome {
    int error;
    uint64_t produced, acked, failed, full;
    int code;
    std::string message;
};

template <typename T>
T *at(uintptr_t address) {
    return reinterpret_cast<T *>(address);
}

struct KafkaProducer {
    KafkaLibrary library;
    cb_kafka *k = nullptr;
    KafkaProducer(const std::string &file, const Settings &settings, const std::string &topic)
        : library(file) {
        char error[512];
        int rc;
        auto given = pointers(settings);
        k = cb_kafka_open(&library.calls, given.data(), settings.size(), topic.c_str(), error,
                          sizeof error, &rc);
        if (!k) throw nb::value_error(error);
    }
    KafkaProducer(const KafkaProducer &) = delete;
    ~KafkaProducer() { close(); }
    void close() {
        cb_kafka *closed = std::exchange(k, nullptr);
        nb::gil_scoped_release release;
        cb_kafka_close(closed);
    }
    KafkaOutcome run(uint64_t count, uintptr_t records, uint64_t nrecords, uint64_t record_nbytes,
                uint64_t stride, bool stamped, uint64_t warmup, uint32_t window, int32_t partitions, bool open,
                int64_t duration_ns, int64_t timeout_ns, uintptr_t stop, uintptr_t intended, uintptr_t start,
                uintptr_t end, uintptr_t offset, uintptr_t partition) {
        if (!k) throw nb::value_error("this producer is closed");
        if (nrecords == 0 || partitions < 0) throw nb::value_error("records and partitions");
        if (stamped && (!records || record_nbytes < sizeof(int64_t)))
            throw nb::value_error("a stamp takes 8 bytes of a record");
        cb_kafka_block block{};
        block.count = count;
        block.records = at<char>(records);
        block.stamped = stamped;
        block.warmup = warmup;
        block.nrecords = nrecords;
        block.record_nbytes = record_nbytes;
        block.stride = stride;
        block.window = window;
        block.partitions = partitions;
        block.open = open;
        block.duration_ns = duration_ns;
        block.timeout_ns = timeout_ns;
        block.stop = at<const int32_t>(stop);
        block.intended = at<int64_t>(intended);
        block.start = at<int64_t>(start);
        block.end = at<int64_t>(end);
        block.offset = at<int64_t>(offset);
        block.partition = at<int32_t>(partition);
        int rc;
        {
            nb::gil_scoped_release release;
            rc = cb_kafka_run(k, &block);
        }
        return {-rc, block.produced, block.acked, block.failed, block.full, block.error, block.message};
    }
};

struct KafkaConsumer {
    KafkaLibrary library;
    std::vector<cb_kafka_part> parts;
    cb_kafka_reader *r = nullptr;
    KafkaConsumer(const std::string &file, const Settings &settings, const std::string &topic,
                  const std::vector<int32_t> &partitions)
        : library(file) {
        char error[512];
        for (int32_t each : partitions) parts.push_back({each, 0, 0, 0});
        auto given = pointers(settings);
        r = cb_kafka_reader_open(&library.calls, given.data(), settings.size(), topic.c_str(),
                                 parts.data(), parts.size(), error, sizeof error);
        if (!r) throw nb::value_error(error);
    }
    KafkaConsumer(const KafkaConsumer &) = delete;
    ~KafkaConsumer() { close(); }
    void close() {
        cb_kafka_reader *closed = std::exchange(r, nullptr);
        nb::gil_scoped_release release;
        cb_kafka_reader_close(closed);
    }
    // errno or 0, records, why
    std::tuple<int, uint64_t, std::string> read(const std::vector<int64_t> &until, uint32_t marks,
                                                uint64_t record_nbytes, int64_t timeout_ns,
                                                uintptr_t stop, broker::Times &end_to_end) {
        if (!r) throw nb::value_error("this consumer is closed");
        if (!until.empty() && until.size() != parts.size())
            throw nb::value_error("until: one for each partition, or none");
        for (size_t i = 0; i < parts.size(); i++) {
            parts[i].until = until.empty() ? -1 : until[i];
            parts[i].marks = marks;
        }
        cb_kafka_pass pass{};
        pass.parts = parts.data();
        pass.nparts = parts.size();
        pass.record_nbytes = record_nbytes;
        pass.timeout_ns = timeout_ns;
        pass.stop = at<const int32_t>(stop);
        pass.end_to_end = &end_to_end.t;
        int rc;
        {
            nb::gil_scoped_release release;
            rc = cb_kafka_read(r, &pass);
        }
        return {-rc, pass.records, pass.message};
    }
};

// Brokers inside this process, which listen on loopback: librdkafka's mock cluster.
struct KafkaMock {
    KafkaLibrary library;
    void *rk = nullptr, *cluster = nullptr;
    KafkaMock(const std::string &file, int brokers) : library(file) {
        char error[256] = "no mock cluster";
        void *conf = library.calls.conf_new_();
        library.calls.conf_set_(conf, "log_level", "0", error, sizeof error);
        rk = library.calls.new_(CB_KAFKA_PRODUCER, conf, error, sizeof error);
        if (rk) cluster = library.calls.mock_cluster_new_(rk, brokers);
        if (cluster) return;
        rk ? library.calls.destroy_(rk) : library.calls.conf_destroy_(conf);
        throw std::runtime_error(error);
    }
    KafkaMock(const KafkaMock &) = delete;
    ~KafkaMock() { close(); }
    void close() {
        void *was = std::exchange(cluster, nullptr);
        if (!was) return;
        nb::gil_scoped_release release;
        library.calls.mock_cluster_destroy_(was);
        library.calls.destroy_(rk);
    }
    void *open() const {
        if (!cluster) throw nb::value_error("this mock cluster is closed");
        return cluster;
    }
    void check(int err) const {
        if (err) throw std::runtime_error(library.calls.err2str_(err));
    }
};

void bind_producer(nb::module_ &m) {
    nb::class_<KafkaOutcome>(m, "KafkaOutcome", "What a block did; error is 0 or an errno.")
        .def_ro("error", &KafkaOutcome::error)
        .def_ro("produced", &KafkaOutcome::produced)
        .def_ro("acked", &KafkaOutcome::acked)
        .def_ro("failed", &KafkaOutcome::failed)
        .def_ro("full", &KafkaOutcome::full)
        .def_ro("code", &KafkaOutcome::code)
        .def_ro("message", &KafkaOutcome::message);

    nb::class_<KafkaProducer>(m, "KafkaProducer",
                         "A producer over a librdkafka that is loaded; see native/kafka/producer.h. "
                         "ValueError for a property that is wrong.")
        .def(nb::init<const std::string &, const Settings &, const std::string &>(),
             nb::arg("file"), nb::arg("settings"), nb::arg("topic"))
        .def("run", &KafkaProducer::run, nb::kw_only(), nb::arg("count"), nb::arg("records"),
             nb::arg("nrecords"), nb::arg("record_nbytes"), nb::arg("stride"), nb::arg("stamped"), nb::arg("warmup"), nb::arg("window"),
             nb::arg("partitions"), nb::arg("open"), nb::arg("duration_ns"), nb::arg("timeout_ns"), nb::arg("stop"),
             nb::arg("intended"), nb::arg("start"), nb::arg("end"), nb::arg("offset"),
             nb::arg("partition"),
             "One block without the GIL. records and all from stop on are addresses; records, offset "
             "and partition may be 0.")
        .def_prop_ro("trouble", [](KafkaProducer &p) {
            return std::string(p.k ? cb_kafka_trouble(p.k) : "");
        }, "What the library said last of its connections, or \"\".")
        .def_prop_ro("version", [](KafkaProducer &p) {
            return std::string(p.library.calls.version_str_());
        })
        .def("close", &KafkaProducer::close);
}

void bind_consumer(nb::module_ &m) {
    nb::class_<KafkaConsumer>(m, "KafkaConsumer",
                              "Reads partitions of a topic from their beginning; see "
                              "native/kafka/consumer.h. ValueError for a property that is wrong.")
        .def(nb::init<const std::string &, const Settings &, const std::string &,
                      const std::vector<int32_t> &>(),
             nb::arg("file"), nb::arg("settings"), nb::arg("topic"), nb::arg("partitions"))
        .def("read", &KafkaConsumer::read, nb::kw_only(), nb::arg("until"), nb::arg("marks"),
             nb::arg("record_nbytes"), nb::arg("timeout_ns"), nb::arg("stop"),
             nb::arg("end_to_end"),
             "Without the GIL, up to these offsets, or with none of them until so many marks have "
             "come in each partition: an errno or 0, records, why. stop is an address.")
        .def("close", &KafkaConsumer::close);
}

}  // namespace

void bind_kafka(nb::module_ &m) {
    bind_producer(m);
    bind_consumer(m);
    nb::class_<KafkaMock>(m, "KafkaMock", "librdkafka's mock cluster, in this process on loopback.")
        .def(nb::init<const std::string &, int>(), nb::arg("file"), nb::arg("brokers"))
        .def_prop_ro("bootstrap_servers", [](KafkaMock &k) {
            return std::string(k.library.calls.mock_cluster_bootstraps_(k.open()));
        })
        .def("create_topic", [](KafkaMock &k, const std::string &topic, int partitions, int replicas) {
            k.check(k.library.calls.mock_topic_create_(k.open(), topic.c_str(), partitions,
                                                       replicas));
        }, nb::arg("topic"), nb::arg("partitions"), nb::arg("replicas"))
        .def("set_down", [](KafkaMock &k, int32_t broker) {
            k.check(k.library.calls.mock_broker_set_down_(k.open(), broker));
        }, nb::arg("broker"), "Disconnects a broker (from 1; -1: all) and refuses connections.")
        .def("set_up", [](KafkaMock &k, int32_t broker) {
            k.check(k.library.calls.mock_broker_set_up_(k.open(), broker));
        }, nb::arg("broker"))
        .def("set_rtt", [](KafkaMock &k, int32_t broker, int rtt_ms) {
            k.check(k.library.calls.mock_broker_set_rtt_(k.open(), broker, rtt_ms));
        }, nb::arg("broker"), nb::arg("rtt_ms"), "Its answers are late by so many ms.")
        .def("close", &KafkaMock::close);
}
