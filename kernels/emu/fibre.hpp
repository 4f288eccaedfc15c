// Switching between stacks: nine instructions on x86-64, ucontext elsewhere (which makes two system calls a switch).
#pragma once

#include <cstddef>
#include <cstdint>

namespace emu {

#if defined(__x86_64__) && defined(__ELF__) && !defined(EMU_UCONTEXT)

// Saves the callee-saved registers on the running stack, its pointer in *from, and goes on at `to`.
extern "C" void sparse_engine_emu_switch(void** from, void* to);
asm(R"(
    .pushsection .text
    .globl sparse_engine_emu_switch
    .hidden sparse_engine_emu_switch
    .type sparse_engine_emu_switch, @function
sparse_engine_emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size sparse_engine_emu_switch, .-sparse_engine_emu_switch
    .popsection
)");

struct Context {
    void* sp = nullptr;
    // Makes the next switch here call `entry`, which must not return.
    void prepare(unsigned char* stack, size_t bytes, void (*entry)()) {
        void** top = reinterpret_cast<void**>(stack + bytes); // 16-byte aligned
        *--top = nullptr;                                     // where `entry` would return to; keeps the ABI's alignment
        *--top = reinterpret_cast<void*>(entry);
        for (int i = 0; i < 6; ++i) *--top = nullptr;
        sp = top;
    }
    void go(Context& to) { sparse_engine_emu_switch(&sp, to.sp); }
};

#else

#include <ucontext.h>

struct Context {
    ucontext_t state;
    void prepare(unsigned char* stack, size_t bytes, void (*entry)()) {
        getcontext(&state);
        state.uc_stack.ss_sp = stack;
        state.uc_stack.ss_size = bytes;
        state.uc_link = nullptr;
        makecontext(&state, entry, 0);
    }
    void go(Context& to) { swapcontext(&state, &to.state); }
};

#endif

} // namespace emu
