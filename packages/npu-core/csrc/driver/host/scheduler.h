// Passes streams between their possible owners.
#pragma once

namespace npu::host {

class Marker;
class Stream;

// The caller has become the owner of `stream`: settles the signals at its front, then frees it or passes it on.
void dispatch(Stream& stream);

// Passes `stream`, whose next task the caller must not run, to the thread that may.
void hand_over(Stream& stream);

// Completes the marker of a record slot and dispatches the streams parked on it.
void complete_marker(Marker* marker);

}  // namespace npu::host
