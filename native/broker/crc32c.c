/* CRC-32C by the processor's instruction, three streams at once, or by eight tables. */
#include "crc32c.h"

#include <endian.h>
#include <string.h>

/* The instruction takes 8 bytes in each cycle but answers after three, so three lanes go on at once
 * (Gopal et al., Fast CRC computation for iSCSI polynomial, Intel 2011). Joining them takes the
 * state of one over LANE bytes of zeros: a linear map, four look-ups. */
#define LANE 512u

#if defined(__x86_64__)
#include <nmmintrin.h>
#define KIND "sse4.2"
#define TARGET __attribute__((target("sse4.2")))
#define CRC_OF_8(crc, word) _mm_crc32_u64(crc, word)
#define CRC_OF_1(crc, byte) _mm_crc32_u8((uint32_t)(crc), byte)
static int has_instruction(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2");
}
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#define KIND "armv8"
#define TARGET __attribute__((target("+crc")))
#define CRC_OF_8(crc, word) __crc32cd((uint32_t)(crc), word)
#define CRC_OF_1(crc, byte) __crc32cb((uint32_t)(crc), byte)
static int has_instruction(void)
{
    return (getauxval(AT_HWCAP) >> 7) & 1;      /* HWCAP_CRC32 */
}
#endif

static uint32_t table[8][256];
static uint32_t over_lane[4][256];      /* by byte of the state: what LANE zeros make of it */
static uint32_t (*best)(uint32_t, const void *, size_t) = cb_crc32c_table;

static inline uint64_t load(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return le64toh(word);
}

uint32_t cb_crc32c_table(uint32_t crc, const void *bytes, size_t nbytes)
{
    const uint8_t *p = bytes;
    crc = ~crc;
    for (; nbytes >= 8; nbytes -= 8, p += 8) {
        uint64_t x = load(p) ^ crc;
        crc = 0;
        for (int k = 0; k < 8; k++)
            crc ^= table[7 - k][(x >> (8 * k)) & 0xff];
    }
    for (; nbytes > 0; nbytes--, p++)
        crc = table[0][(crc ^ *p) & 0xff] ^ (crc >> 8);
    return ~crc;
}

#ifdef KIND
static inline uint32_t lane_further(uint64_t crc)
{
    return over_lane[0][crc & 0xff] ^ over_lane[1][(crc >> 8) & 0xff] ^
           over_lane[2][(crc >> 16) & 0xff] ^ over_lane[3][(crc >> 24) & 0xff];
}

TARGET static uint32_t by_instruction(uint32_t crc, const void *bytes, size_t nbytes)
{
    const uint8_t *p = bytes;
    uint64_t a = (uint32_t)~crc;
    for (; nbytes >= 3 * LANE; nbytes -= 3 * LANE, p += 3 * LANE) {
        uint64_t b = 0, c = 0;
        for (size_t k = 0; k < LANE; k += 8) {
            a = CRC_OF_8(a, load(p + k));
            b = CRC_OF_8(b, load(p + LANE + k));
            c = CRC_OF_8(c, load(p + 2 * LANE + k));
        }
        a = lane_further(lane_further(a) ^ b) ^ c;
    }
    for (; nbytes >= 8; nbytes -= 8, p += 8)
        a = CRC_OF_8(a, load(p));
    for (; nbytes > 0; nbytes--, p++)
        a = CRC_OF_1(a, *p);
    return ~(uint32_t)a;
}
#endif

static void fill_table(void)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t crc = n;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? (crc >> 1) ^ UINT32_C(0x82f63b78) : crc >> 1;
        table[0][n] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (uint32_t n = 0; n < 256; n++)
            table[k][n] = table[0][table[k - 1][n] & 0xff] ^ (table[k - 1][n] >> 8);
}

static void fill_over_lane(void)
{
    static const uint8_t zeros[LANE];
    for (int k = 0; k < 4; k++) {
        for (int bit = 0; bit < 8; bit++)
            over_lane[k][1u << bit] = ~cb_crc32c_table(~(UINT32_C(1) << (8 * k + bit)), zeros, LANE);
        for (uint32_t n = 1; n < 256; n++)
            over_lane[k][n] = over_lane[k][n & (n - 1)] ^ over_lane[k][n & -n];
    }
}

__attribute__((constructor)) static void choose(void)
{
    fill_table();
    fill_over_lane();
#ifdef KIND
    if (has_instruction())
        best = by_instruction;
#endif
}

uint32_t cb_crc32c(uint32_t crc, const void *bytes, size_t nbytes)
{
    return best(crc, bytes, nbytes);
}

const char *cb_crc32c_kind(void)
{
#ifdef KIND
    if (best == by_instruction)
        return KIND;
#endif
    return "table";
}
