// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Finds the constant that turns the address of a struct page into that of the page's memory. Loaded only while the
 * splitter starts, and only for events of its own scratch device.
 *
 * On x86-64 with a virtual memory map: memory = page_offset_base + (page - vmemmap_base) / 64 * 4096, so
 * memory = page * 64 + (page_offset_base - vmemmap_base * 64). The constant comes from the two variables, where
 * /proc/kallsyms shows their addresses, or from a buffer_head, which has both the page and the address of its data.
 */
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

volatile const u32 scratch_dev = 0;
volatile const u64 vmemmap_base_address = 0;
volatile const u64 page_offset_base_address = 0;

struct finding {
	u64 from_variables;
	u64 from_buffer;
	u64 variables_seen;
	u64 buffer_seen;
	u64 page_struct_bytes;
	u64 vector_bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct finding);
} finding SEC(".maps");

SEC("tp_btf/block_rq_issue")
int calibrate_variables(u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	u32 zero = 0;
	u64 map_base, memory_base;
	if (rq->q->disk->part0->bd_dev != scratch_dev)
		return 0;
	struct finding *f = bpf_map_lookup_elem(&finding, &zero);
	if (!f)
		return 0;
	f->page_struct_bytes = type_size(struct page);
	f->vector_bytes = type_size(struct bio_vec___kernel);
	if (bpf_probe_read_kernel(&map_base, sizeof(map_base), (const void *)vmemmap_base_address) ||
	    bpf_probe_read_kernel(&memory_base, sizeof(memory_base), (const void *)page_offset_base_address))
		return 0;
	f->from_variables = memory_base - map_base * 64;
	f->variables_seen = 1;
	return 0;
}

SEC("tp_btf/block_touch_buffer")
int calibrate_buffer(u64 *ctx)
{
	struct buffer_head *buffer = (struct buffer_head *)ctx[0];
	u32 zero = 0;
	u64 page;
	if (buffer->b_bdev->bd_dev != scratch_dev)
		return 0;
	/* Only the first page of the device: of a large folio b_page is the head, and the data may lie further on. */
	if (buffer->b_blocknr * buffer->b_size >= 4096)
		return 0;
	struct finding *f = bpf_map_lookup_elem(&finding, &zero);
	if (!f || bpf_probe_read_kernel(&page, sizeof(page), &buffer->b_page))
		return 0;
	u64 memory = 0;
	bpf_probe_read_kernel(&memory, sizeof(memory), &buffer->b_data);
	f->from_buffer = (memory & ~4095ull) - page * 64;
	f->buffer_seen = 1;
	return 0;
}
