// A stage at work on a GPU that the processor does not wait for: steps, and the transfers before
// and after them, are put into the GPU's streams as soon as they are announced, and end there in
// order.
#ifndef FABRICAST_RUNTIME_ENGINE_DEVICE_STAGE_WORKER_H_
#define FABRICAST_RUNTIME_ENGINE_DEVICE_STAGE_WORKER_H_

#include <memory>

#include "runtime/engine/stage_worker.h"
#include "runtime/executor/device_executor.h"
#include "runtime/transport/device_transport.h"

namespace fabricast {

// As MakeStageWorker; `transport` moves bytes of the memory that `executor` computes in. It has two
// threads: one enqueues, up to executor.slots() steps ahead, the other hears of what is done. A
// step's reports come together once it is computed, with the times at which the GPU did it all.
std::unique_ptr<StageWorker> MakeDeviceStageWorker(int stage, int stages, DeviceExecutor& executor,
                                                   DeviceTransport& transport,
                                                   StageObserver& observer);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_DEVICE_STAGE_WORKER_H_
