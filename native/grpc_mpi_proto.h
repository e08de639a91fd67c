/*
 * The messages of TensorFlow's gRPC+MPI in protobuf's wire format, written and read by hand with the
 * field numbers of its .proto files:
 *   RecvTensorRequest      step_id = 1, rendezvous_key = 2, request_id = 7
 *   MPIRecvTensorResponse  response = 1, singleSend = 2, key = 3, step_id = 4
 *   RecvTensorResponse     tensor = 1
 *   TensorProto            dtype = 1, tensor_shape = 2, tensor_content = 4
 *   TensorShapeProto       dim = 2 { size = 1 }
 * Part of grpc_mpi_engine.h.
 */
#define DT_UINT8 4
#define FRAMING 1024u           /* bytes of a message beside the tensor's content, at most */
#define KEY_MAX 256u

enum wire_type { VARINT = 0, LENGTH_DELIMITED = 2 };

typedef struct span {
    const char *at;
    uint64_t nbytes;
} span;

typedef struct response {
    span key, content;
    uint64_t step, nbytes;      /* nbytes: of the tensor, from its shape */
    bool single_send;
} response;

typedef struct request {
    span key;
    uint64_t step, id;
} request;

/* ------------------------------------------------------------------ writing */

static uint32_t varint_nbytes(uint64_t value)
{
    uint32_t n = 1;
    while (value >>= 7)
        n++;
    return n;
}

static char *put_varint(char *to, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        *to++ = (char)(value | 0x80);
    *to++ = (char)value;
    return to;
}

static char *put_number(char *to, int field, uint64_t value)
{
    return put_varint(put_varint(to, (uint64_t)field << 3 | VARINT), value);
}

/* The head of a field whose nbytes follow. All field numbers here take one byte. */
static char *put_head(char *to, int field, uint64_t nbytes)
{
    return put_varint(put_varint(to, (uint64_t)field << 3 | LENGTH_DELIMITED), nbytes);
}

static char *put_span(char *to, int field, span value)
{
    to = put_head(to, field, value.nbytes);
    memcpy(to, value.at, value.nbytes);
    return to + value.nbytes;
}

static uint64_t delimited(uint64_t nbytes)
{
    return 1 + varint_nbytes(nbytes) + nbytes;
}

static char *write_request(char *to, const request *r)
{
    to = put_number(to, 1, r->step);
    to = put_span(to, 2, r->key);
    return put_number(to, 7, r->id);
}

typedef struct sizes {          /* of the nested messages of a response */
    uint64_t dim, shape, tensor, response, all;
} sizes;

static sizes size_response(const response *r)
{
    sizes s;
    s.dim = 1 + varint_nbytes(r->nbytes);
    s.shape = delimited(s.dim);
    s.tensor = 2 + delimited(s.shape) + (r->single_send ? delimited(r->nbytes) : 0);
    s.response = delimited(s.tensor);
    s.all = delimited(s.response) + 2 + delimited(r->key.nbytes) + 1 + varint_nbytes(r->step);
    return s;
}

/* The content goes in at the address that is returned through `content`: copying it is counted. */
static void write_response(char *to, const response *r, const sizes *s, char **content)
{
    to = put_head(to, 1, s->response);
    to = put_head(to, 1, s->tensor);
    to = put_number(to, 1, DT_UINT8);
    to = put_head(to, 2, s->shape);
    to = put_head(to, 2, s->dim);
    to = put_number(to, 1, r->nbytes);
    if (r->single_send) {
        to = put_head(to, 4, r->nbytes);
        *content = to;
        to += r->nbytes;
    }
    to = put_number(to, 2, r->single_send);
    to = put_span(to, 3, r->key);
    put_number(to, 4, r->step);
}

/* ------------------------------------------------------------------ reading */

typedef struct field {
    uint64_t number, value;     /* value: of a varint */
    span span;                  /* of a length-delimited one */
} field;

static bool get_varint(span *from, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; shift < 64 && from->nbytes > 0; shift += 7) {
        unsigned char byte = (unsigned char)*from->at++;
        from->nbytes--;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

/* 1: a field was read; 0: there is no more; -1: this is no protobuf that we know. */
static int get_field(span *from, field *f)
{
    uint64_t head, nbytes;
    if (from->nbytes == 0)
        return 0;
    if (!get_varint(from, &head))
        return -1;
    *f = (field){.number = head >> 3};
    if ((head & 7) == VARINT)
        return get_varint(from, &f->value) ? 1 : -1;
    if ((head & 7) != LENGTH_DELIMITED || !get_varint(from, &nbytes) || nbytes > from->nbytes)
        return -1;
    f->span = (span){from->at, nbytes};
    from->at += nbytes;
    from->nbytes -= nbytes;
    return 1;
}

static bool read_request(span from, request *r)
{
    field f;
    int rc;
    *r = (request){0};
    while ((rc = get_field(&from, &f)) == 1)
        if (f.number == 1)
            r->step = f.value;
        else if (f.number == 2)
            r->key = f.span;
        else if (f.number == 7)
            r->id = f.value;
    return rc == 0 && r->key.nbytes > 0;
}

/* One message inside another: `then` for each of its fields. */
static bool read_fields(span from, response *r, bool (*then)(const field *f, response *r))
{
    field f;
    int rc;
    while ((rc = get_field(&from, &f)) == 1)
        if (!then(&f, r))
            return false;
    return rc == 0;
}

static bool in_dim(const field *f, response *r)
{
    if (f->number == 1)
        r->nbytes = f->value;
    return true;
}

static bool in_shape(const field *f, response *r)
{
    return f->number != 2 || read_fields(f->span, r, in_dim);
}

static bool in_tensor(const field *f, response *r)
{
    if (f->number == 1)
        return f->value == DT_UINT8;
    if (f->number == 4)
        r->content = f->span;
    return f->number != 2 || read_fields(f->span, r, in_shape);
}

static bool in_response(const field *f, response *r)
{
    return f->number != 1 || read_fields(f->span, r, in_tensor);
}

static bool in_mpi_response(const field *f, response *r)
{
    if (f->number == 2)
        r->single_send = f->value != 0;
    else if (f->number == 3)
        r->key = f->span;
    else if (f->number == 4)
        r->step = f->value;
    return f->number != 1 || read_fields(f->span, r, in_response);
}

static bool read_response(span from, response *r)
{
    *r = (response){0};
    return read_fields(from, r, in_mpi_response) && r->key.nbytes > 0 &&
           r->content.nbytes == (r->single_send ? r->nbytes : 0);
}
