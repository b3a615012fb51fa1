#include <c10/util/Exception.h>

#include "harness.h"
#include "runtime/allocator_config.h"

using npu::AllocatorConfig;

namespace {
constexpr std::size_t kMiB = std::size_t{1} << 20;
}

NPU_TEST(rounding_follows_the_documented_examples) {
  const AllocatorConfig config;
  CHECK_EQ(config.round_request(1), 512u);
  CHECK_EQ(config.round_request(40), 512u);
  CHECK_EQ(config.round_request(480), 512u);
  CHECK_EQ(config.round_request(481), 1024u);
  CHECK_EQ(config.round_request(1048544), 1048576u);
  CHECK_EQ(config.round_request(1048576), 1049088u);
  CHECK_EQ(config.round_request(10485760), 10486272u);
  CHECK_EQ(config.segment_size(512), 2 * kMiB);
  CHECK_EQ(config.segment_size(1048576), 2 * kMiB);
  CHECK_EQ(config.segment_size(1049088), 20 * kMiB);
  CHECK_EQ(config.segment_size(10 * kMiB - 512), 20 * kMiB);
  CHECK_EQ(config.segment_size(10486272), 12 * kMiB);
}

NPU_TEST(rounding_to_divisions_of_powers_of_two) {
  const AllocatorConfig four = AllocatorConfig::parse("roundup_power2_divisions:4");
  // Between 1024 and 2048 KiB the steps are 256 KiB.
  CHECK_EQ(four.round_request(1200 * 1024), std::size_t{1280} * 1024);
  CHECK_EQ(four.round_request(1537 * 1024), std::size_t{1792} * 1024);
  CHECK_EQ(four.round_request(100), 512u);
  const AllocatorConfig list = AllocatorConfig::parse("roundup_power2_divisions:[2:8,4:1,>:2]");
  CHECK_EQ(list.power2_divisions[0], 8u);
  CHECK_EQ(list.power2_divisions[1], 8u);
  CHECK_EQ(list.power2_divisions[2], 1u);
  CHECK_EQ(list.power2_divisions[3], 2u);
  CHECK_EQ(list.power2_divisions[15], 2u);
  CHECK_EQ(list.round_request(9 * kMiB), 12 * kMiB);
}

NPU_TEST(every_documented_key_is_accepted) {
  const AllocatorConfig config = AllocatorConfig::parse(
      " max_split_size_mb : 64, garbage_collection_threshold:0.8, base_addr_aligned_kb:0, page_size:1g,"
      "segment_size_mb:512, large_segment_size_mb:32, multi_stream_lazy_reclaim:True, per_process_memory_fraction:0.5,"
      "throw_on_npumalloc_oom:True, max_non_split_rounding_mb:30, release_lock_on_npumalloc:True,"
      "pinned_use_background_threads:True, pinned_max_round_threshold_mb:64, pinned_max_cached_size_mb:64,"
      "pinned_reserve_segment_size_mb:0, pin_memory_expandable_segments:False, pinned_mem_register:True,"
      "roundup_power2_divisions:[256:1,512:2,>:4], expandable_segments:False");
  CHECK_EQ(config.max_split_size, 64 * kMiB);
  CHECK_EQ(config.large_segment_size, 32 * kMiB);
  CHECK_EQ(config.memory_fraction, 0.5);
  CHECK_EQ(config.garbage_collection_threshold, 0.8);
  CHECK(config.throw_on_oom);
  CHECK(!config.expandable_segments);
  CHECK_EQ(config.segment_size(2 * kMiB), 32 * kMiB);
  CHECK_EQ(AllocatorConfig::parse("").max_split_size, AllocatorConfig::kUnlimited);
  CHECK(AllocatorConfig::parse("expandable_segments:True").expandable_segments);
}

NPU_TEST(bad_settings_are_named) {
  const auto rejected = [](const char* text, const char* part) {
    CHECK_THROWS(c10::Error, AllocatorConfig::parse(text), part);
  };
  rejected("max_split:64", "Unrecognized key 'max_split'");
  rejected("max_split_size_mb:20", "greater than 20, but got '20'");
  rejected("max_split_size_mb:x", "but got 'x'");
  rejected("max_split_size_mb", "expected key:value");
  rejected("max_split_size_mb:", "expected key:value");
  rejected("garbage_collection_threshold:1", "(0, 1)");
  rejected("garbage_collection_threshold:0", "(0, 1)");
  rejected("per_process_memory_fraction:1.5", "[0, 1]");
  rejected("base_addr_aligned_kb:17", "must be [0~16]");
  rejected("base_addr_aligned_kb:-1", "must be [0~16]");
  rejected("page_size:2g", "1g");
  rejected("segment_size_mb:513", "[20, 512]");
  rejected("large_segment_size_mb:10", "greater than 10");
  rejected("expandable_segments:yes", "True or False");
  rejected("roundup_power2_divisions:3", "power of two");
  rejected("roundup_power2_divisions:[3:4]", "powers of two");
  rejected("roundup_power2_divisions:[512:4,256:2]", "ascending");
  rejected("expandable_segments:True,max_split_size_mb:64", "cannot be combined");
  rejected("garbage_collection_threshold:0.5,expandable_segments:True", "cannot be combined");
}

NPU_TEST(both_variables_are_rejected, {"PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True"},
         {"PYTORCH_ALLOC_CONF", "expandable_segments:True"}) {
  CHECK_THROWS(c10::Error, AllocatorConfig::from_environment(), "only one of the two");
}

NPU_TEST(the_alias_is_read, {"PYTORCH_ALLOC_CONF", "max_split_size_mb:40"}, {"PYTORCH_NO_NPU_MEMORY_CACHING", "1"}) {
  const AllocatorConfig config = AllocatorConfig::from_environment();
  CHECK_EQ(config.max_split_size, 40 * kMiB);
  CHECK(!config.caching);
}

NPU_TEST(a_bad_switch_is_rejected, {"PYTORCH_NO_NPU_MEMORY_CACHING", "yes"}) {
  CHECK_THROWS(c10::Error, AllocatorConfig::from_environment(),
               "PYTORCH_NO_NPU_MEMORY_CACHING should be 0 or 1, but got 'yes'");
}
