/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The ring and its records: one for each issue, completion and requeue, in one order over all disks. Mirrored in
 * src/capture/layout.rs.
 */
#ifndef TIDEMARK_RECORDS_H
#define TIDEMARK_RECORDS_H

#include "requests.h"

enum record_type { RECORD_ISSUE = 1, RECORD_COMPLETE = 2, RECORD_REQUEUE = 3 };
enum flag { FLAG_FUA = 1, FLAG_PREFLUSH = 2, FLAG_SECURE_ERASE = 4 };

/* 40 bytes; the payload of a data record follows. */
struct record {
	u8 type;
	u8 kind;
	u16 slot;
	u32 generation;
	u64 request;
	u64 start_sector;
	u32 sectors;
	u32 flags;
	union {
		u64 boottime_ns; /* issue */
		struct { /* completion */
			u32 bytes;
			u32 status;
		};
	};
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 << 20);
} ring SEC(".maps");

inline_always void fill_issue(struct record *r, const struct view *v)
{
	u32 flags = 0;
	if (v->cmd_flags & (1u << enum_value(enum req_flag_bits, __REQ_FUA)))
		flags |= FLAG_FUA;
	if (v->cmd_flags & (1u << enum_value(enum req_flag_bits, __REQ_PREFLUSH)))
		flags |= FLAG_PREFLUSH;
	if ((v->cmd_flags & REQ_OP_MASK) == REQ_OP_SECURE_ERASE)
		flags |= FLAG_SECURE_ERASE;
	r->type = RECORD_ISSUE;
	r->kind = v->kind;
	r->slot = v->slot;
	r->generation = v->state >> 1;
	r->request = v->request;
	r->start_sector = v->sector;
	r->sectors = v->bytes >> 9;
	r->flags = flags;
	r->boottime_ns = bpf_ktime_get_boot_ns();
}

#endif
