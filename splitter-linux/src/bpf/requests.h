/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What a program needs to know about a request, and whether it concerns a protected disk.
 */
#ifndef TIDEMARK_REQUESTS_H
#define TIDEMARK_REQUESTS_H

#include "kernel.h"
#include "tables.h"

enum kind { KIND_DATA = 1, KIND_ZEROES = 2, KIND_DISCARD = 3, KIND_FLUSH = 4, KIND_UNSUPPORTED = 5 };

/* A request of a protected disk. */
struct view {
	struct control *control;
	u64 state;
	u64 request;
	u64 sector;
	u32 bytes;
	u32 cmd_flags;
	u32 slot;
	u32 kind;
};

inline_always u32 kind_of(u32 cmd_flags)
{
	switch (cmd_flags & REQ_OP_MASK) {
	case REQ_OP_WRITE:
		return KIND_DATA;
	case REQ_OP_FLUSH:
		return KIND_FLUSH;
	case REQ_OP_DISCARD:
	case REQ_OP_SECURE_ERASE:
		return KIND_DISCARD;
	case REQ_OP_WRITE_ZEROES:
		return KIND_ZEROES;
	}
	return KIND_UNSUPPORTED;
}

inline_always int modifies(u32 cmd_flags)
{
	return cmd_flags & 1 || (cmd_flags & REQ_OP_MASK) == REQ_OP_FLUSH;
}

/* False: a read, or not a protected disk. */
inline_always int look(struct request *rq, struct view *v)
{
	u32 cmd_flags = rq->cmd_flags;
	if (!modifies(cmd_flags))
		return 0;
	u32 dev = rq->q->disk->part0->bd_dev, zero = 0;
	u32 *slot = bpf_map_lookup_elem(&disks, &dev);
	if (!slot)
		return 0;
	struct control *control_value = bpf_map_lookup_elem(&control, &zero);
	if (!control_value)
		return 0;
	v->control = control_value;
	v->state = *(volatile u64 *)&control_value->state;
	v->request = (u64)rq;
	v->cmd_flags = cmd_flags;
	v->slot = *slot;
	v->kind = kind_of(cmd_flags);
	v->bytes = rq->__data_len;
	v->sector = v->kind == KIND_FLUSH ? 0 : rq->__sector;
	return 1;
}

/*
 * Looked at once a record is reserved: the generation ended since the program looked at the request. Such a record is
 * discarded, so that none lies behind a write that was missed: whoever raises the generation does so before that write is
 * issued, and this one's place was taken before it looked here. Otherwise, where a large write found no room and a small
 * one then did, the ring would hold the later of two writes without the earlier.
 */
inline_always int ended(const struct view *v)
{
	return *(volatile u64 *)&v->control->state != v->state;
}

#endif
