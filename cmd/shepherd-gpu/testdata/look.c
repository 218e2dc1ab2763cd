/* Looks for GPUs as CUDA programs do, and prints what it finds as JSON. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

static void cuda(void)
{
	int version = 0, (*ask)(int *);
	void *library = dlopen("libcuda.so.1", RTLD_NOW);

	if (library == NULL) {
		printf("\"Cuda\": \"%s\"", dlerror());
		return;
	}
	ask = (int (*)(int *))dlsym(library, "cuDriverGetVersion");
	if (ask == NULL || ask(&version) != 0) {
		printf("\"Cuda\": \"a library without a driver\"");
		return;
	}
	printf("\"Cuda\": \"made-up CUDA %d\"", version);
}

static void node(const char *path, const char *end)
{
	struct stat is;

	printf("\"%s\": \"", path);
	if (stat(path, &is) == 0) {
		printf("%u:%u ", major(is.st_rdev), minor(is.st_rdev));
		printf("%s", open(path, O_RDWR) < 0 ? strerror(errno) : "opened");
	} else {
		printf("%s", strerror(errno));
	}
	printf("\"%s", end);
}

static const char *variable(const char *name)
{
	const char *value = getenv(name);

	return value == NULL ? "" : value;
}

int main(void)
{
	printf("{");
	cuda();
	printf(", \"Nodes\": {");
	node("/dev/nvidia0", ", ");
	node("/dev/nvidia1", ", ");
	node("/dev/nvidiactl", ", ");
	node("/dev/vendor/card1", "}");
	printf(", \"Env\": {\"NVIDIA_VISIBLE_DEVICES\": \"%s\", \"CARD\": \"%s\"}}\n", variable("NVIDIA_VISIBLE_DEVICES"), variable("CARD"));
	return 0;
}
