/* How much memory the broker has, over the time that it serves. Part of broker.c. */

#define SAMPLES 1024            /* when full, every other one goes and the distance doubles */
#define SAMPLE_NS INT64_C(50000000)

typedef struct memory {
    uint64_t at[SAMPLES];       /* resident bytes */
    uint32_t count;
    int64_t distance_ns, next_ns;
} memory;

static uint64_t resident_bytes(void)
{
    char text[64] = "";
    unsigned long long total = 0, resident = 0;
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0 || sscanf(text, "%llu %llu", &total, &resident) != 2)
        return 0;
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void sample_memory(memory *m, int64_t now)
{
    if (now < m->next_ns)
        return;
    if (m->distance_ns == 0)
        m->distance_ns = SAMPLE_NS;
    if (m->count == SAMPLES) {
        for (uint32_t i = 0; i < SAMPLES / 2; i++)
            m->at[i] = m->at[2 * i];
        m->count = SAMPLES / 2;
        m->distance_ns *= 2;
    }
    m->at[m->count++] = resident_bytes();
    m->next_ns = now + m->distance_ns;
}
