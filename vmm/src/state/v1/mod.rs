//! State version 1: plain data only, no methods that do anything. Frozen once released: fields
//! keep their order and meaning, and the golden bytes in the tests hold them to it.

mod devices;
mod machine;

pub use devices::{
    BlockState, ConsoleState, MmioState, NetState, PmState, QueueStateV1, RngState, SerialState,
    VirtioDeviceState, VmGenIdState, VsockState,
};
pub use machine::{ClockState, CpuidEntry, MachineState, MsrEntry, Shape, VcpuState};
