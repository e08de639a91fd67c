/* What the grpc+mpi engine knows of a case. Part of grpc_mpi_engine.h. */
#define MOST_NBYTES ((uint64_t)INT_MAX - FRAMING)   /* of a tensor: MPI counts in int */
#define OPTIMAL_FROM 1024u      /* bytes: TensorFlow's, below them a tensor goes in one message */
#define IDLE_TURNS 256u         /* before the progress thread yields or sleeps */
#define NAP_NS 50000

typedef MPI_HANDLE handle;
typedef char *status;

#define MPI_CALL_MEMBER(name, arguments) int (*name) arguments;

enum tag { TAG_REQUEST = 1010, TAG_RESPONSE = 2020, TAG_CONTENT = 3030 };

typedef struct library {
    struct { CB_GRPC_MPI_CALLS(MPI_CALL_MEMBER, handle, status) } mpi;
    handle comm, byte, info_null;
    int any_source, source_at;
} library;

/* A tensor in the local table, for whoever asks for it (TensorFlow's MPISendTensorCall). */
typedef struct offer {
    bool put;
    uint64_t nbytes;
    const char *from;           /* what goes: the application's one buffer, or */
    char *content;              /* tensor_content; on the optimal path several buffers joined */
    char *buffer;               /* the response, in memory of MPI's */
    handle head, body;          /* on TAG_RESPONSE, on TAG_CONTENT */
    int head_done, body_done;
} offer;

/* A tensor that is asked of its owner (MPIRequestTensorCall). */
typedef struct call {
    bool sent, arrived;
    cb_iov target;
    char *buffer;               /* the request, in memory of MPI's */
    handle request;
    uint64_t nbytes;            /* of what came */
} call;

/* The k-th exchange with a peer. Its asker offers the request and calls for the reply, its server
 * calls for the request and offers the reply. */
struct lane {
    enum lane_state state;
    bool asks, wants_reply;
    uint32_t peer;              /* index */
    uint64_t number;            /* k: TensorFlow's step */
    offer out;
    call in;
    uint64_t ticket;            /* asker: of post() */
    uint32_t pending;           /* asker: halves that are not complete */
    uint32_t slot;              /* server: of `incoming` */
    uint64_t asked;             /* server: 1 + number of the last reply that was asked for */
};

typedef struct key {
    char text[KEY_MAX];
    uint32_t nbytes;
} key;

/* Which tensors flow between us and a peer: requests and replies, from us and to us. */
enum flow { OUR_REQUEST, OUR_REPLY, THEIR_REQUEST, THEIR_REPLY, FLOWS };

typedef struct peer {
    int32_t rank;
    key keys[FLOWS];
    uint64_t asked, pulled;     /* requests that we posted; of which the peer asked for */
    uint64_t called, arrived;   /* requests that we asked the peer for; that came */
    uint32_t in_flight;
    uint32_t *free_slots, nfree;
    lane *asks, *serves;        /* `lanes` each; number k is in lane k mod lanes */
    bool took_leave;            /* an empty request came: no other follows in this case */
    bool leaving;               /* ours was sent */
    handle leave;
} peer;

typedef struct engine {
    cb_engine engine;
    library l;
    int32_t rank;
    bool optimal, sleeps;
    uint32_t *meetings, nmeetings;      /* cases so far with each rank: the keys' incarnation */

    pthread_t thread;
    pthread_mutex_t lock;       /* of all below */
    pthread_cond_t news;        /* for the thread of the loop */
    pthread_cond_t work;        /* for the progress thread */
    bool running, closing, parked, napping, waiting, handed_over, quit, gone;
    int failed;                 /* -errno of the progress thread, whose line is in thread_error */
    char error[512], thread_error[512];

    const cb_case *c;
    uint32_t lanes, ncut;
    peer *peers;
    int32_t *index_of, nranks;  /* rank -> index in peers, or -1 */
    struct iovec **cut;         /* by slot: its buffers when the message is shorter */
    lane *all;
    ring calls, responses;      /* what the progress thread is to send, one of each in a turn */
    ring done, arrived, loose;  /* for poll(), for accept(), to be called for anew */
    lane **active;              /* responses on their way; the progress thread's */
    uint32_t nactive;
    uint64_t largest;           /* bytes that a message of this case may have */
    uint64_t request_id;
    cb_grpc_mpi_counters counters;
} engine;
