# The command line: words `key=value`. Keys are at most eight letters, so one compares as a
# number. Unknown words are named and ignored: other VMMs add their own.

sc_keys:                                 # key, kind, header offset
    .ascii "cpus\0\0\0\0"
    .long 0, H_CPUS
    .ascii "ws\0\0\0\0\0\0"
    .long 0, H_WS
    .ascii "data\0\0\0\0"
    .long 0, H_DATA
    .ascii "rate\0\0\0\0"
    .long 2, H_RATE
    .ascii "pattern\0"
    .long 3, H_PATTERN
    .ascii "hot\0\0\0\0\0"
    .long 0, H_HOT
    .ascii "hotp\0\0\0\0"
    .long 0, H_HOTP
    .ascii "compress"
    .long 0, H_COMPRESS
    .ascii "seed\0\0\0\0"
    .long 0, H_SEED
    .ascii "hb\0\0\0\0\0\0"
    .long 1, H_HB
    .ascii "status\0\0"
    .long 1, H_STATUS
    .ascii "poll\0\0\0\0"
    .long 1, H_POLL
    .ascii "verify\0\0"
    .long 1, H_VERIFY
    .ascii "tag\0\0\0\0\0"
    .long 4, H_TAG
    .ascii "log\0\0\0\0\0"
    .long 0, H_LOG
    .ascii "poison\0\0"
    .long 0, H_POISON
    .ascii "tsc_khz\0"
    .long 0, H_TSC_KHZ
    .ascii "pm\0\0\0\0\0\0"
    .long 0, H_PM
    .quad 0

# Defaults, then the words. ws = 0 stays "half of RAM" only if the key is absent: -1 marks that.
sc_cmdline:
    mov qword ptr [r14 + H_CPUS], 1
    mov qword ptr [r14 + H_WS], -1
    mov qword ptr [r14 + H_RATE], 1000
    mov qword ptr [r14 + H_PATTERN], 1
    mov qword ptr [r14 + H_HOT], 10
    mov qword ptr [r14 + H_HOTP], 90
    mov qword ptr [r14 + H_SEED], 1
    mov qword ptr [r14 + H_HB], 10 * NS_PER_MS
    mov qword ptr [r14 + H_STATUS], NS_PER_S
    mov qword ptr [r14 + H_POLL], 50 * NS_PER_MS
    mov qword ptr [r14 + H_TAG], 46
    mov qword ptr [r14 + H_POISON], -1
    mov rax, qword ptr [r14 + H_START_INFO]
    mov rsi, qword ptr [rax + 24]
    test rsi, rsi
    jz sc_ret
sc_word:
    cmp byte ptr [rsi], 0
    je sc_ret
    cmp byte ptr [rsi], 32
    ja 2f
    inc rsi
    jmp sc_word
2:  mov rbx, rsi                         # start of the word
    xor eax, eax
    xor ecx, ecx
3:  movzx edx, byte ptr [rsi]
    cmp edx, 32
    jbe sc_unknown
    inc rsi
    cmp edx, 61                          # '='
    je 4f
    cmp ecx, 64
    jae sc_unknown
    shl rdx, cl
    or rax, rdx
    add ecx, 8
    jmp 3b
4:  lea rdi, [rip + sc_keys]
5:  cmp qword ptr [rdi], 0
    je sc_unknown
    cmp qword ptr [rdi], rax
    je 6f
    add rdi, 16
    jmp 5b
6:  call sc_value
    jc sc_bad_value
    cmp byte ptr [rsi], 32               # nothing may follow the value
    ja sc_bad_value
    mov ecx, dword ptr [rdi + 12]
    mov qword ptr [r14 + rcx], rax
    jmp sc_word
sc_ret:
    ret

sc_unknown:                              # skip to its end, and say so
    call sc_line
    push rsi
    lea rsi, [rip + sc_s_ignored]
    call sc_puts
    pop rsi
    mov rsi, rbx
    call sc_putword
    push rsi
    call sc_nl
    call sc_flush
    pop rsi
    jmp sc_word

sc_bad_value:
    call sc_line
    lea rsi, [rip + sc_s_bad]
    call sc_puts
    mov rsi, rbx
    call sc_putword
    mov byte ptr [r12], 0
    mov esi, SC_TEXT
    mov r12d, SC_TEXT + 0x400            # sc_fatal builds its line elsewhere
    push r12
    call sc_puts
    mov byte ptr [r12], 0
    pop rsi
    jmp sc_fatal
sc_s_ignored: .asciz "\nSCRIBBLER-IGNORED "
sc_s_bad: .asciz "not understood: "

# Copies the word at rsi (at most 200 letters), leaves rsi behind it.
sc_putword:
    mov ecx, 200
2:  mov al, byte ptr [rsi]
    cmp al, 32
    jbe sc_ret
    inc rsi
    dec ecx
    js 2b
    mov byte ptr [r12], al
    inc r12
    jmp 2b

# Value at rsi of the kind at [rdi + 8] to rax; carry if it is none.
sc_value:
    mov ecx, dword ptr [rdi + 8]
    cmp ecx, 1
    je sc_duration
    cmp ecx, 2
    je sc_rate
    cmp ecx, 3
    je sc_pattern
    cmp ecx, 4
    je sc_char
    call sc_number
    jc sc_ret
# Optional size suffix K, M, G (with or without iB behind it).
sc_suffix:
    mov dl, byte ptr [rsi]
    or dl, 32
    mov ecx, 10
    cmp dl, 107                          # k
    je 2f
    mov ecx, 20
    cmp dl, 109                          # m
    je 2f
    mov ecx, 30
    cmp dl, 103                          # g
    je 2f
    xor ecx, ecx
    ret
2:  shl rax, cl
    inc rsi
    cmp word ptr [rsi], 0x4269           # iB
    jne 3f
    add rsi, 2
3:  clc
    ret

sc_duration:
    call sc_number
    jc sc_ret
    mov ecx, NS_PER_S
    cmp byte ptr [rsi], 115              # s
    je 3f
    mov ecx, NS_PER_MS
    cmp word ptr [rsi], 0x736D           # ms
    je 2f
    mov ecx, 1000
    cmp word ptr [rsi], 0x7375           # us
    je 2f
    cmp rax, 1                           # only 0 needs no unit
    cmc
    ret
2:  inc rsi
3:  inc rsi
    imul rax, rcx
    clc
    ret

# "max", pages a second, or bytes a second if a size suffix stands behind the number.
sc_rate:
    mov rax, -1
    mov edx, dword ptr [rsi]
    and edx, 0xFFFFFF
    cmp edx, 0x78616D                    # max
    jne 2f
    add rsi, 3
    clc
    ret
2:  call sc_number
    jc sc_ret
    call sc_suffix
    test ecx, ecx
    jz 3f
    shr rax, 12
    cmp word ptr [rsi], 0x732F           # "/s"
    jne 3f
    add rsi, 2
3:  clc
    ret

sc_pattern:
    xor eax, eax
    mov edx, dword ptr [rsi]
    and edx, 0xFFFFFF
    cmp edx, 0x716573                    # seq
    je 2f
    inc eax
    cmp edx, 0x6E6172                    # ran(dom)
    je 3f
    inc eax
    cmp edx, 0x746F68                    # hot
    je 2f
    stc
    ret
3:  add rsi, 3
2:  add rsi, 3
    clc
    ret

sc_char:
    movzx eax, byte ptr [rsi]
    cmp al, 33
    jb sc_ret                            # carry: no letter
    inc rsi
    clc
    ret

# Decimal or 0x number at rsi to rax; carry if there is no digit or it is too large.
sc_number:
    xor eax, eax
    mov ecx, 10
    cmp word ptr [rsi], 0x7830           # 0x
    jne 2f
    add rsi, 2
    mov ecx, 16
2:  xor r8d, r8d                         # digits seen
3:  movzx edx, byte ptr [rsi]
    sub edx, 48
    cmp edx, 10
    jb 4f
    cmp ecx, 16
    jne 5f
    or edx, 32
    sub edx, 49                          # 'a' - '0'
    cmp edx, 6
    jae 5f
    add edx, 10
4:  mov r9d, edx
    mul rcx
    jc 6f
    add rax, r9
    jc 6f
    inc rsi
    inc r8d
    jmp 3b
5:  cmp r8d, 1                           # carry if none
6:  ret
