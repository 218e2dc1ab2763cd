/* A driver's library that makes up a version. */
int cuDriverGetVersion(int *version)
{
	*version = 12040;
	return 0;
}
