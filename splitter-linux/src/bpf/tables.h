/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What user space and the programs know together: the mode of capture, the protected disks, and the counters of each.
 * Mirrored in src/capture/layout.rs.
 */
#ifndef TIDEMARK_TABLES_H
#define TIDEMARK_TABLES_H

#include "kernel.h"

#define SLOTS 64
#define CAUSES 16

/* Numbers of GapCause in the protocol. */
enum cause {
	CAUSE_RING_FULL = 2,
	CAUSE_FAULT = 3,
	CAUSE_TOO_LARGE = 5,
	CAUSE_UNSEEN = 8,
	CAUSE_WITNESS = 9,
	CAUSE_UNSUPPORTED = 12,
};

struct control {
	/* generation << 1 | FULL */
	u64 state;
	u64 cause;
	/* Producer position at the last restart; only user space reads and writes it. */
	u64 generation_start;
	/* How often the notes about completions were full: what was counted is in doubt. User space lowers it again. */
	u64 doubts;
	/* By cause, since the programs were loaded. */
	u64 misses[CAUSES];
};
#define FULL 1ull

struct slot {
	u64 completed_write_sectors;
	u64 completed_discard_sectors;
	/* Raised after every mark: user space looks at the map only when it moved. */
	u64 marks;
	/* The map does not say everything: take the whole disk as dirty. */
	u64 whole;
	u64 reserved[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct control);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__type(value, struct slot);
} slots SEC(".maps");

/* dev_t of a whole disk → slot. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__type(value, u32);
} disks SEC(".maps");

#endif
