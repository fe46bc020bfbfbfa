/* What a program asks of the loader of shared libraries, which a static one does not have. The linker
   leads the calls here. */

#define _GNU_SOURCE
#include <stddef.h>
#include <string.h>
#include <sys/random.h>

/* The C library would load the modules that the machine's nsswitch.conf names, such as `resolve`:
   they bring another C library, mostly of another version, and the program crashes. No module is
   ever found; `files` and `dns` are built in and need none. */
void *__wrap___libc_dlopen_mode(const char *name, int mode)
{
    (void)name;
    (void)mode;
    return NULL;
}

/* Libraries look for functions that old systems lack. Those that random numbers come from would
   else fall back to /dev/urandom, which an empty root does not have. */
void *__wrap_dlsym(void *handle, const char *name)
{
    (void)handle;
    return strcmp(name, "getrandom") == 0 ? (void *)getrandom : NULL;
}
