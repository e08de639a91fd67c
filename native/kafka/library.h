/*
 * What the kafka producer knows of librdkafka without its rdkafka.h: addresses, found in the library
 * that Python's confluent_kafka has loaded, and the few constants and the one struct that are part
 * of its stable ABI. Written from the reference of librdkafka's C API.
 */
#ifndef COMMBENCH_KAFKA_LIBRARY_H
#define COMMBENCH_KAFKA_LIBRARY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* rd_kafka_message_t: what a delivery report points to, and what a consumer gets. */
typedef struct cb_kafka_message {
    int err;
    void *topic;
    int32_t partition;
    void *payload;
    size_t len;
    void *key;
    size_t key_len;
    int64_t offset;
    void *opaque;               /* as given to produce() */
} cb_kafka_message;

typedef void cb_kafka_delivered(void *rk, const cb_kafka_message *message, void *opaque);
typedef void cb_kafka_failed(void *rk, int err, const char *reason, void *opaque);

/* type of the result, name after rd_kafka_, arguments */
#define CB_KAFKA_CALLS(X) \
    X(const char *, version_str, (void)) \
    X(void *, conf_new, (void)) \
    X(void, conf_destroy, (void *conf)) \
    X(int, conf_set, (void *conf, const char *name, const char *value, char *error, size_t size)) \
    X(void, conf_set_opaque, (void *conf, void *opaque)) \
    X(void, conf_set_dr_msg_cb, (void *conf, cb_kafka_delivered *callback)) \
    X(void, conf_set_error_cb, (void *conf, cb_kafka_failed *callback)) \
    X(void *, new, (int type, void *conf, char *error, size_t size)) \
    X(void, destroy, (void *rk)) \
    X(void *, topic_new, (void *rk, const char *name, void *conf)) \
    X(void, topic_destroy, (void *topic)) \
    X(int, produce, (void *topic, int32_t partition, int flags, void *payload, size_t len, \
                     const void *key, size_t key_len, void *opaque)) \
    X(int, last_error, (void)) \
    X(const char *, err2str, (int err)) \
    X(int, poll, (void *rk, int timeout_ms)) \
    X(void *, queue_get_main, (void *rk)) \
    X(void, queue_destroy, (void *queue)) \
    X(void, queue_io_event_enable, (void *queue, int fd, const void *payload, size_t size)) \
    X(int, outq_len, (void *rk)) \
    X(void *, topic_partition_list_new, (int size)) \
    X(void, topic_partition_list_destroy, (void *list)) \
    X(void *, topic_partition_list_add, (void *list, const char *topic, int32_t partition)) \
    X(int, topic_partition_list_set_offset, (void *list, const char *topic, int32_t partition, \
                                             int64_t offset)) \
    X(int, assign, (void *rk, const void *list)) \
    X(int, poll_set_consumer, (void *rk)) \
    X(cb_kafka_message *, consumer_poll, (void *rk, int timeout_ms)) \
    X(int, consumer_close, (void *rk)) \
    X(void, message_destroy, (cb_kafka_message *message)) \
    X(int, purge, (void *rk, int flags)) \
    X(void *, mock_cluster_new, (void *rk, int brokers)) \
    X(void, mock_cluster_destroy, (void *cluster)) \
    X(const char *, mock_cluster_bootstraps, (const void *cluster)) \
    X(int, mock_topic_create, (void *cluster, const char *topic, int partitions, int replication)) \
    X(int, mock_broker_set_down, (void *cluster, int32_t broker)) \
    X(int, mock_broker_set_up, (void *cluster, int32_t broker)) \
    X(int, mock_broker_set_rtt, (void *cluster, int32_t broker, int rtt_ms))

#define CB_KAFKA_FIELD(type, name, arguments) type (*name##_) arguments;
typedef struct cb_kafka_library {
    CB_KAFKA_CALLS(CB_KAFKA_FIELD)
} cb_kafka_library;

enum { CB_KAFKA_PRODUCER = 0, CB_KAFKA_CONSUMER = 1, CB_KAFKA_ANY_PARTITION = -1 };
enum { CB_KAFKA_COPY = 2 };     /* the library has its own copy of a value when produce() returns */
enum { CB_KAFKA_PURGE_QUEUE = 1, CB_KAFKA_PURGE_INFLIGHT = 2 };
enum {                          /* rd_kafka_resp_err_t; below 0: of the library itself */
    CB_KAFKA_QUEUE_FULL = -184, CB_KAFKA_AUTHENTICATION = -169, CB_KAFKA_FATAL = -150,
    CB_KAFKA_ALL_BROKERS_DOWN = -187, CB_KAFKA_MESSAGE_TIMED_OUT = -192
};

#ifdef __cplusplus
}
#endif
#endif
