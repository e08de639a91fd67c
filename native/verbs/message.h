/*
 * The control message of grpc+verbs as it lies in a message buffer: TensorFlow's layout, all of it
 * written each time but for the status, which only ERROR_STATUS has. Part of engine.c.
 *
 *   type 1 | name_size 2 | name 512 | step_id 8 | request_index 8 | remote_addr 8 | rkey 4
 *   | is_dead 1 | data_type 4 | tensor_shape 24 | tensor_bytes 8 | status_size 4 | status <= 4096
 *
 * Integers are in the order of the host, as TensorFlow's. tensor_shape is its TensorShape in memory: the
 * one dimension, in byte 15 how many there are, and the number of elements. v1 has it before each
 * tensor in a tensor buffer, too, and the buffer's size as request_index; in gdr the description of a
 * region has its key as step_id. Behind the message in its buffer is v1's ACK buffer.
 */
enum {
    AT_TYPE = 0, AT_NAME_SIZE = 1, AT_NAME = 3, NAME_MAX_NBYTES = 512,
    AT_STEP = AT_NAME + NAME_MAX_NBYTES,
    AT_INDEX = AT_STEP + 8, AT_ADDRESS = AT_INDEX + 8, AT_RKEY = AT_ADDRESS + 8,
    AT_DEAD = AT_RKEY + 4, AT_DATA_TYPE = AT_DEAD + 1, AT_SHAPE = AT_DATA_TYPE + 4,
    AT_NBYTES = AT_SHAPE + 24, MESSAGE_NBYTES = AT_NBYTES + 8,
    AT_STATUS = MESSAGE_NBYTES + 4, STATUS_MAX_NBYTES = 4096,
    ACK_AT = AT_STATUS + STATUS_MAX_NBYTES, ACK_NBYTES = 16,
    BUFFER_NBYTES = ACK_AT + ACK_NBYTES
};

/* v1's: a type, the length of a name, and TensorFlow's name of the buffer. */
#define ACK_MESSAGE "\0\15\0rx_ack_buffer"

enum { DT_INVALID = 0, DT_UINT8 = 4 };

typedef struct message {
    uint8_t type;
    char name[NAME_MAX_NBYTES + 1];
    uint16_t name_nbytes;
    uint64_t step, index, address, nbytes;
    uint32_t rkey, data_type;
    const char *status;         /* ERROR_STATUS; when read it ends where status_nbytes says */
    uint32_t status_nbytes;
} message;

static void put(char *to, const void *from, size_t nbytes)
{
    memcpy(to, from, nbytes);
}

/* How many bytes of the buffer are to be written. */
static uint32_t write_message(char *to, const message *m)
{
    memset(to, 0, MESSAGE_NBYTES);
    put(to + AT_TYPE, &m->type, 1);
    put(to + AT_NAME_SIZE, &m->name_nbytes, 2);
    put(to + AT_NAME, m->name, m->name_nbytes);
    put(to + AT_STEP, &m->step, 8);
    put(to + AT_INDEX, &m->index, 8);
    put(to + AT_ADDRESS, &m->address, 8);
    put(to + AT_RKEY, &m->rkey, 4);
    put(to + AT_DATA_TYPE, &m->data_type, 4);
    put(to + AT_SHAPE, &m->nbytes, 8);
    to[AT_SHAPE + 15] = 1;      /* dimensions */
    put(to + AT_SHAPE + 16, &m->nbytes, 8);
    put(to + AT_NBYTES, &m->nbytes, 8);
    if (m->type != ERROR_STATUS)
        return MESSAGE_NBYTES;
    uint32_t nbytes = m->status_nbytes < STATUS_MAX_NBYTES ? m->status_nbytes : STATUS_MAX_NBYTES;
    put(to + MESSAGE_NBYTES, &nbytes, 4);
    put(to + AT_STATUS, m->status, nbytes);
    return AT_STATUS + nbytes;
}

static bool read_message(const char *from, message *m)
{
    memset(m, 0, sizeof *m);
    memcpy(&m->type, from + AT_TYPE, 1);
    memcpy(&m->name_nbytes, from + AT_NAME_SIZE, 2);
    if (m->type >= MESSAGE_TYPES || m->name_nbytes > NAME_MAX_NBYTES)
        return false;
    memcpy(m->name, from + AT_NAME, m->name_nbytes);
    memcpy(&m->step, from + AT_STEP, 8);
    memcpy(&m->index, from + AT_INDEX, 8);
    memcpy(&m->address, from + AT_ADDRESS, 8);
    memcpy(&m->rkey, from + AT_RKEY, 4);
    memcpy(&m->data_type, from + AT_DATA_TYPE, 4);
    memcpy(&m->nbytes, from + AT_NBYTES, 8);
    if (m->type == ERROR_STATUS) {
        memcpy(&m->status_nbytes, from + MESSAGE_NBYTES, 4);
        m->status = from + AT_STATUS;
    }
    return m->status_nbytes <= STATUS_MAX_NBYTES;
}
