# Ring 0: PVH entry, AP start, descriptor tables, exceptions, timer, and one service. Kept short
# and table-driven: on software backends every instruction here is emulated.

.code32
scribbler_image_start:
    cli                                  # PVH entry: flat 32-bit, ebx = start info
    cld
    mov dword ptr [SC_HEADER + H_START_INFO], ebx
    lgdt [SC_LOAD + 0x20]
    jmp sc_start32

.org scribbler_image_start + 0x20
sc_gdt_ptr:
    .word 0x40 + 16 * SC_MAX_CPUS - 1
    .long SC_GDT
    .long 0
.org scribbler_image_start + 0x30
sc_idt_ptr:
    .word 0x40 * 16 - 1
    .quad SC_IDT

.org scribbler_image_start + 0x40
sc_start32:                              # boot CPU and APs meet here, GDT loaded
    mov eax, SEL_DATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, cr4
    or eax, 0x620                        # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, SC_PML4
    mov cr3, eax
    mov ecx, 0xC0000080                  # EFER.LME
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, 0x80010033                  # PG, WP, NE, ET, MP, PE
    mov cr0, eax
    .byte 0xEA                           # far jump to sc_start64
    .long SC_LOAD + 0xC0
    .word SEL_CODE0

.code64
.org scribbler_image_start + 0xC0
sc_start64:
    mov ebp, SC_LAPIC
    mov edi, dword ptr [rbp + 0x20]
    shr edi, 24                          # APIC id = CPU number
    cmp edi, SC_MAX_CPUS
    jae sc_stop
    mov ebx, edi
    shl ebx, 12
    add ebx, SC_PERCPU
    lea rsp, [rbx + PC_STACK0]
    lidt [rip + sc_idt_ptr]
    jmp sc_init64

# The AP's first code, copied below 1 MiB: real mode, cs = its page.
.code16
sc_trampoline:
    cli
    mov ax, cs
    mov ds, ax
    .byte 0x66, 0x0F, 0x01, 0x16         # lgdt [disp16] with a 32-bit base
    .word sc_tramp_gdt - sc_trampoline
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xEA                     # far jump to sc_start32
    .long SC_LOAD + 0x40
    .word SEL_CODE32
sc_tramp_gdt:
    .word 0x40 + 16 * SC_MAX_CPUS - 1
    .long SC_GDT
.org sc_trampoline + SC_TRAMPOLINE_LEN
.code64

.org scribbler_image_start + 0x200
# Accessed bits are set beforehand, so that loading a selector writes nothing.
    .quad 0
    .quad 0x00AF9B000000FFFF             # 0x08 code, ring 0, 64-bit
    .quad 0x00CF93000000FFFF             # 0x10 data, ring 0
    .quad 0x00CF9B000000FFFF             # 0x18 code, ring 0, 32-bit
    .quad 0x00CFF3000000FFFF             # 0x20 data, ring 3
    .quad 0x00AFFB000000FFFF             # 0x28 code, ring 3, 64-bit
    .quad 0, 0
    .word 0x2068, SC_TSS0 & 0xFFFF       # CPU 0: limit covers the I/O bitmap
    .byte SC_TSS0 >> 16, 0x89, 0, SC_TSS0 >> 24
    .quad 0
.set sc_v, 1
.rept SC_MAX_CPUS - 1
    .word 0x67, (SC_PERCPU + sc_v * 4096) & 0xFFFF
    .byte (SC_PERCPU + sc_v * 4096) >> 16, 0x89, 0, 0
    .quad 0
    .set sc_v, sc_v + 1
.endr

.org scribbler_image_start + 0x600
.set sc_v, 0
.rept 32
    .balign 16
    .if ((0x60227D00 >> sc_v) & 1) == 0
    push 0                               # vectors without an error code
    .endif
    push sc_v
    jmp sc_exception
    .set sc_v, sc_v + 1
.endr
.org scribbler_image_start + 0x800       # stubs 32, 33: timer
sc_timer:
    push rax
    mov eax, SC_LAPIC
    mov dword ptr [rax + 0xB0], 0        # EOI
    pop rax
    iretq
.org scribbler_image_start + 0x820       # stub 34: spurious
    iretq
.org scribbler_image_start + 0x830       # stub 35: invalid opcode
    cmp qword ptr [rsp], SC_CALL         # the service call, or a real one
    je sc_service
    push 0
    push 6
    jmp sc_exception

# How ring 3 calls ring 0 (eax = service). By an invalid opcode, because `int n` is the one
# thing the software backend cannot deliver from ring 3; exceptions work everywhere.
.org scribbler_image_start + 0x8F0
sc_call:
    ud2
    ret

.org scribbler_image_start + 0x900
.set sc_v, 0
.rept 0x40
    .set sc_h, SC_STUBS + sc_v * 16
    .if sc_v == VEC_TIMER
    .set sc_h, SC_STUBS + 32 * 16
    .elseif sc_v == 6
    .set sc_h, SC_STUBS + 35 * 16
    .elseif sc_v >= 32
    .set sc_h, SC_STUBS + 34 * 16
    .endif
    .word sc_h & 0xFFFF, SEL_CODE0
    .byte 0, 0x8E                        # interrupt gate, ring 0 only
    .word sc_h >> 16
    .quad 0
    .set sc_v, sc_v + 1
.endr

# edi = CPU, rbx = its page, rbp = LAPIC.
sc_init64:
    mov esi, ebx                         # rsi = TSS
    test edi, edi
    jnz 2f
    mov esi, SC_TSS0                     # bitmap is zero (all ports), the byte after it ones
    mov byte ptr [rsi + 0x2068], 0xFF
2:  lea rax, [rbx + PC_STACK0]
    mov qword ptr [rsi + 4], rax         # rsp0
    mov word ptr [rsi + 0x66], 0x68      # I/O bitmap offset; beyond the limit on APs
    mov eax, edi
    shl eax, 4
    add eax, SEL_TSS
    ltr ax
    mov r15d, edi
    shl r15d, SC_CPU_SHIFT
    add r15d, SC_CPUS
    mov r14d, SC_HEADER
    mov qword ptr [r15 + C_ID], rdi
    lea rax, [rbx + PC_CLOCK]
    mov qword ptr [r15 + C_CLOCK], rax
    mov r12, rbx
    test edi, edi
    jnz 3f
    call sc_probe
3:  cmp byte ptr [r14 + H_KVMCLOCK], 0
    je 4f
    lea rax, [r12 + PC_CLOCK + 1]        # enable bit
    xor edx, edx
    mov ecx, 0x4B564D01
    wrmsr
4:  mov dword ptr [rbp + 0xF0], 0x100 + VEC_SPURIOUS
    mov dword ptr [rbp + 0x350], 0x10000 # LINT0, LINT1 masked
    mov dword ptr [rbp + 0x360], 0x10000
    mov dword ptr [rbp + 0x3E0], 0xB     # divide by 1
    mov eax, VEC_TIMER
    cmp byte ptr [r14 + H_DEADLINE], 0
    je 5f
    or eax, 0x40000
5:  mov dword ptr [rbp + 0x320], eax
    mfence
    lea rax, [r12 + PC_STACK3]
    lea rcx, [rip + sc_main]
    push SEL_DATA3
    push rax
    push 2                               # IF = 0: interrupts only while idling
    push SEL_CODE3
    push rcx
    iretq

# What the machine offers. CPUID is asked here: in ring 3 it may not be virtualised.
sc_probe:
    mov al, 0xFF                         # legacy interrupt controllers off
    out 0x21, al
    out 0xA1, al
    mov eax, 1
    cpuid
    shr ecx, 24
    and ecx, 1
    mov qword ptr [r14 + H_DEADLINE], rcx
    mov eax, 0x40000000
    cpuid
    cmp ebx, 0x4B4D564B                  # "KVMK"
    jne 2f
    mov eax, 0x40000001
    cpuid
    shr eax, 3                           # clock source 2
    and eax, 1
    mov qword ptr [r14 + H_KVMCLOCK], rax
    jnz 9f
2:  xor eax, eax
    cpuid
    mov r8d, eax
    cmp r8d, 0x15
    jb 9f
    mov eax, 0x15
    cpuid
    test eax, eax
    jz 3f
    imul rcx, rbx                        # crystal * ratio
    jz 3f
    mov r9d, eax
    mov rax, rcx
    xor edx, edx
    div r9
    xor edx, edx
    mov ecx, 1000
    div rcx
    mov qword ptr [r14 + H_TSC_KHZ], rax
    ret
3:  cmp r8d, 0x16
    jb 9f
    mov eax, 0x16
    cpuid
    imul eax, eax, 1000
    mov qword ptr [r14 + H_TSC_KHZ], rax
9:  ret

# eax = service. Idle: rdi = TSC ticks, esi = ns until the timer. Clobbers rax, rcx, rdx.
sc_service:
    add qword ptr [rsp], 2               # past the ud2
    test eax, eax
    jnz sc_stop
    mov ecx, SC_HEADER
    cmp byte ptr [rcx + H_DEADLINE], 0
    je 2f
    rdtsc                                # here and not in ring 3: KVM compares with this TSC
    shl rdx, 32
    or rax, rdx
    add rax, rdi
    mov rdx, rax
    shr rdx, 32
    mov ecx, 0x6E0
    wrmsr
    jmp 3f
2:  mov ecx, SC_LAPIC                    # KVM's APIC timer ticks once a nanosecond
    mov dword ptr [rcx + 0x380], esi
3:  sti
    hlt
    cli
    iretq
sc_stop:
    cli
    hlt
    jmp sc_stop

# Stack: vector, error code, rip, ...
sc_exception:
    mov r12d, SC_TEXT_EXC
    lea rsi, [rip + sc_s_exc]
    call sc_puts
    mov rax, qword ptr [rsp]
    call sc_putn
    lea rsi, [rip + sc_s_rip]
    call sc_puts
    mov rax, qword ptr [rsp + 16]
    call sc_putx
    lea rsi, [rip + sc_s_cr2]
    call sc_puts
    mov rax, cr2
    call sc_putx
    lea rsi, [rip + sc_s_err]
    call sc_puts
    mov rax, qword ptr [rsp + 8]
    call sc_putx
    call sc_nl
    mov esi, SC_TEXT_EXC
    call sc_send
    jmp sc_stop
sc_s_exc: .asciz "\nSCRIBBLER-EXCEPTION vec="
sc_s_rip: .asciz " rip=0x"
sc_s_cr2: .asciz " cr2=0x"
sc_s_err: .asciz " err=0x"
