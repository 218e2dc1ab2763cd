/* What multiply.py needs of libcuda.so.1, without a GPU: the product is made here,
 * whatever the kernel is. With STANDIN=wrong it is wrong. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int status;

status cuInit(unsigned flags) { return (int)flags; }
status cuDeviceGetCount(int *count) { *count = 1; return 0; }
status cuDeviceGet(int *device, int number) { *device = number; return 0; }
status cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Stand-in", size); return device; }
status cuDevicePrimaryCtxRetain(void **context, int device) { *context = context; return device; }
status cuCtxSetCurrent(void *context) { return context == NULL; }
status cuModuleLoadData(void **module, const char *text) { *module = (void *)text; return strstr(text, ".entry multiply(") == NULL; }
status cuModuleGetFunction(void **function, void *module, const char *name) { *function = module; return strcmp(name, "multiply"); }
status cuMemAlloc_v2(uint64_t *pointer, size_t size) { *pointer = (uint64_t)malloc(size); return *pointer == 0; }
status cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) { memcpy((void *)to, from, size); return 0; }
status cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) { memcpy(to, (void *)from, size); return 0; }
status cuCtxSynchronize(void) { return 0; }
status cuGetErrorString(status s, const char **text) { *text = "the stand-in's"; return s == 0; }

status cuLaunchKernel(void *function, unsigned bx, unsigned by, unsigned bz, unsigned tx, unsigned ty, unsigned tz,
	unsigned shared, void *stream, void **arguments, void **extra)
{
	const float *a = *(float **)arguments[0], *b = *(float **)arguments[1];
	float *c = *(float **)arguments[2];
	uint32_t n = *(uint32_t *)arguments[3], i, j, k;
	const char *how = getenv("STANDIN");

	(void)stream;
	if (function == NULL || extra != NULL || (uint64_t)bx * tx < (uint64_t)n * n || by * bz * ty * tz != 1 || shared != 0)
		return 1;
	memset(c, 0, sizeof(float) * n * n);
	for (i = 0; i < n; i++)
		for (k = 0; k < n; k++)
			for (j = 0; j < n; j++)
				c[i * n + j] += a[i * n + k] * b[k * n + j];
	if (how != NULL && strcmp(how, "wrong") == 0)
		c[n + 1] += 1;
	return 0;
}
