/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * A processor whose interrupts nest, to run src/bpf/notes.h on: two programs per event, skipped while they run, an
 * interrupt at every place where one matters. Prints what went wrong and counts; exit status 1 when an event was
 * handled twice, or not at all although one of its programs ran.
 *
 * With -DNAIVE the programs use one place per request address, found by hashing, as a control that must fail.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TIDEMARK_KERNEL_H
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
#define inline_always static inline __attribute__((always_inline))

struct bvec_iter { u64 bi_sector; u32 bi_size, bi_idx, bi_bvec_done; };
struct bio { struct bio *bi_next; struct bvec_iter bi_iter; void *bi_io_vec; };
struct request { u64 __sector, start_time_ns; u32 __data_len; int busy; int handled; int skipped; };

static long bpf_probe_read_kernel(void *to, u32 size, const void *from)
{
	if ((u64)from < 4096)
		return -1;
	memcpy(to, from, size);
	return 0;
}

static void interrupt(void);
#define INTERRUPT() interrupt()
#include "../src/bpf/notes.h"

#define REQUESTS 96
#define LEVELS 3
static struct request requests[REQUESTS];
static int depth, running[2], wanted_odds;
static u64 seed, twice, never, lost, doubts, events, clock_ns;

static u32 random_below(u32 below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (seed >> 11) % below;
}

#ifdef NAIVE
static u64 places[64];
static u64 *place(struct request *rq) { return &places[((u64)rq / sizeof(*rq)) % 16]; }
static int first_note(struct request *rq) { INTERRUPT(); *place(rq) = (u64)rq; INTERRUPT(); return 1; }
static int second_note(struct request *rq)
{
	int found = *place(rq) == (u64)rq;
	INTERRUPT();
	if (found)
		*place(rq) = 0;
	return found;
}
#else
static struct notes notes;
static int first_note(struct request *rq) { return leave_note(&notes, rq); }
static int second_note(struct request *rq) { return take_note(&notes, rq); }
#endif

static void handle(struct request *rq)
{
	INTERRUPT();
	rq->handled++;
	INTERRUPT();
}

static void program(int number, struct request *rq)
{
	if (running[number]) {
		rq->skipped++;
		return;
	}
	running[number] = 1;
	INTERRUPT();
	if (number == 0) {
		if (first_note(rq))
			handle(rq);
		else
			doubts++;
	} else if (!second_note(rq)) {
		handle(rq);
	}
	INTERRUPT();
	running[number] = 0;
}

/* A request is completed: the tracepoint, then what the block layer does to it, then perhaps its next use. */
static void complete_one(void)
{
	struct request *rq = &requests[random_below(REQUESTS)];
	if (rq->busy)
		return;
	int flush = (rq - requests) < 2;
	rq->busy = 1;
	rq->handled = rq->skipped = 0;
	/* Requests submitted together share the time that the kernel took once; flushes are made one by one. */
	rq->start_time_ns = flush ? ++clock_ns : clock_ns / 64;
	rq->__sector = flush ? 0 : random_below(1u << 30);
	rq->__data_len = flush ? 0 : 512 * (1 + random_below(8));
	INTERRUPT();
	u64 before = doubts;
	program(0, rq);
	INTERRUPT();
	program(1, rq);
	INTERRUPT();
	events++;
	if (rq->handled > 1)
		twice++;
	if (!rq->handled && rq->skipped == 2)
		lost++;
	if (!rq->handled && rq->skipped < 2 && doubts == before)
		never++;
	rq->__data_len = 0;
	rq->busy = 0;
}

static void interrupt(void)
{
	if (depth + 1 >= LEVELS || random_below(wanted_odds))
		return;
	depth++;
	for (u32 n = 1 + random_below(12); n; n--)
		complete_one();
	depth--;
}

int main(int count, char **arguments)
{
	u64 rounds = count > 1 ? strtoull(arguments[1], NULL, 10) : 100000;
	seed = count > 2 ? strtoull(arguments[2], NULL, 10) : 1;
	for (wanted_odds = 400; wanted_odds >= 20; wanted_odds /= 2)
		for (u64 n = 0; n < rounds; n++)
			complete_one();
	printf("events %llu, twice %llu, never %llu, skipped by both %llu, doubts %llu\n", events, twice, never, lost, doubts);
	return twice || never;
}
