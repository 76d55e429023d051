/* A version that runs as long as its interpreter is there. */
#include <stdio.h>
#include <string.h>
int main(int n, char **args) {
	if (n > 1 && strcmp(args[1], "version") == 0) puts("v9.9.8");
	return 0;
}
