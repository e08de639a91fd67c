/* CRC-32C (Castagnoli, reflected, as in RFC 3720): the checksum of Kafka's record batches. */
#ifndef COMMBENCH_CRC32C_H
#define COMMBENCH_CRC32C_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The CRC of what came before (0 at the start) and these bytes: it can be taken in pieces. Uses the
 * processor's instruction where it has one. */
uint32_t cb_crc32c(uint32_t crc, const void *bytes, size_t nbytes);
/* The same from tables: what a processor without the instruction runs. */
uint32_t cb_crc32c_table(uint32_t crc, const void *bytes, size_t nbytes);
/* "sse4.2", "armv8" or "table": what cb_crc32c() runs on. */
const char *cb_crc32c_kind(void);

#ifdef __cplusplus
}
#endif
#endif
