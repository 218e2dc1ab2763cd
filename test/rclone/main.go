// Command rclone is rclone with its S3 server and directories of the local disk
// alone, which is built in a fraction of the time of the whole. The storage client
// is tested against it; it is never shipped.
package main

import (
	_ "github.com/rclone/rclone/backend/local" // what is served
	"github.com/rclone/rclone/cmd"
	_ "github.com/rclone/rclone/cmd/serve/s3" // rclone serve s3
)

func main() { cmd.Main() }
