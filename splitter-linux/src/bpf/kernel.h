/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The part of the kernel's types and of the BPF helper interface which the tap uses, written by hand.
 *
 * Structures name only the fields that are read. `preserve_access_index` makes clang emit a CO-RE relocation for
 * each access, so the loader replaces every offset with that of the running kernel; the layouts here never matter.
 * Helper numbers and flag values are kernel user-space interface (include/uapi/linux/bpf.h) and never change.
 */
#ifndef TIDEMARK_KERNEL_H
#define TIDEMARK_KERNEL_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

#define SEC(name) __attribute__((section(name), used))
#define inline_always static inline __attribute__((always_inline))
#define CORE __attribute__((preserve_access_index))
#define NULL ((void *)0)

/* Map definitions in the BTF style of libbpf, which aya reads as well. */
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define __array(name, val) typeof(val) *name[]

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_MAP_TYPE_RINGBUF = 27,
};

#define BPF_F_MMAPABLE (1U << 10)
#define BPF_F_INNER_MAP (1U << 12)
#define BPF_RB_NO_WAKEUP 1ULL

/* An opaque handle: the kernel requires 8-byte alignment and 16 bytes. */
struct bpf_dynptr {
	u64 opaque[2];
} __attribute__((aligned(8)));

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static u64 (*const bpf_ktime_get_boot_ns)(void) = (void *)125;
static long (*const bpf_probe_read_kernel)(void *dst, u32 size, const void *src) = (void *)113;
static void *(*const bpf_ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*const bpf_ringbuf_submit)(void *record, u64 flags) = (void *)132;
static void (*const bpf_ringbuf_discard)(void *record, u64 flags) = (void *)133;
static long (*const bpf_loop)(u32 count, void *step, void *context, u64 flags) = (void *)181;
static long (*const bpf_ringbuf_reserve_dynptr)(void *ring, u32 size, u64 flags, struct bpf_dynptr *out) = (void *)198;
static void (*const bpf_ringbuf_submit_dynptr)(struct bpf_dynptr *record, u64 flags) = (void *)199;
static void (*const bpf_ringbuf_discard_dynptr)(struct bpf_dynptr *record, u64 flags) = (void *)200;
static void *(*const bpf_dynptr_data)(struct bpf_dynptr *record, u32 offset, u32 length) = (void *)203;

/* ---- block layer (include/linux/blk-mq.h, blk_types.h, bvec.h) ---- */

struct block_device {
	u32 bd_dev;
} CORE;

struct gendisk {
	struct block_device *part0;
} CORE;

struct request_queue {
	struct gendisk *disk;
} CORE;

struct page {
	unsigned long flags;
} CORE;

/* Read as a whole through bpf_probe_read_kernel, so the layout is this one; it has not changed since 2.6. The loader
 * checks the size against the kernel's BTF all the same. */
struct bio_vec {
	u64 bv_page;
	u32 bv_len;
	u32 bv_offset;
};

/* The same type under a name whose accesses are relocated, for the size check. `___` starts a CO-RE flavour. */
struct bio_vec___kernel {
	struct page *bv_page;
} CORE;

struct bvec_iter {
	u64 bi_sector;
	u32 bi_size;
	u32 bi_idx;
	u32 bi_bvec_done;
} __attribute__((packed)) CORE;

struct bio {
	struct bio *bi_next;
	struct bvec_iter bi_iter;
	struct bio_vec *bi_io_vec;
} CORE;

struct request {
	struct request_queue *q;
	u32 cmd_flags;
	u32 __data_len;
	u64 __sector;
	u64 start_time_ns;
	struct bio *bio;
} CORE;

struct buffer_head {
	struct page *b_page;
	u64 b_blocknr;
	u64 b_size;
	char *b_data;
	struct block_device *b_bdev;
} CORE;

/* The low eight bits of cmd_flags (enum req_op). These values have been the same since 4.10; REQ_OP_DRV_* since 5.13.
 * Everything else with the lowest bit set changes the medium (op_is_write()), zone operations for example. */
#define REQ_OP_MASK 0xff
#define REQ_OP_WRITE 1
#define REQ_OP_FLUSH 2
#define REQ_OP_DISCARD 3
#define REQ_OP_SECURE_ERASE 5
#define REQ_OP_WRITE_ZEROES 9

/* Bit numbers above the operation; they move between versions, so they are relocated. */
enum req_flag_bits {
	__REQ_FUA = 17,
	__REQ_PREFLUSH = 18,
};
enum req_flag_bits___p2p {
	__REQ_P2PDMA = 28, /* since 6.17 */
};

#define enum_value(type, name) __builtin_preserve_enum_value(*(typeof(type) *)name, 1)
#define enum_exists(type, name) __builtin_preserve_enum_value(*(typeof(type) *)name, 0)
#define type_size(type) __builtin_preserve_type_info(*(typeof(type) *)0, 1)

#endif
