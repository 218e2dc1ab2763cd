package runtimetest

import "net"

// serveNonsense listens on the runner's port and does not speak ZeroMQ.
func serveNonsense(port string) error {
	l, err := net.Listen("tcp", "0.0.0.0:"+port)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n                                                                 "))
			_, _ = conn.Read(make([]byte, 64))
		}()
	}
}
