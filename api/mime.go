package api

import "strings"

// typeByName guesses a file's MIME type from its name, by the rules of Python's
// mimetypes module as the original did: the last extension that is not the mark
// of a compression decides. The table is fixed, so that an answer does not
// depend on the machine's /etc/mime.types.
func typeByName(name string) string {
	base, ext := splitExt(name)
	if long, ok := abbreviated[strings.ToLower(ext)]; ok {
		base, ext = splitExt(base + long)
	}
	if compressed[ext] {
		_, ext = splitExt(base)
	}
	if found, ok := types[strings.ToLower(ext)]; ok {
		return found
	}
	return "application/octet-stream"
}

// splitExt cuts a name before the dot of its extension. Dots that a name begins
// with do not begin an extension.
func splitExt(name string) (base, ext string) {
	dot := strings.LastIndexByte(name, '.')
	file := strings.LastIndexByte(name, '/') + 1
	if dot < file || strings.Trim(name[file:dot], ".") == "" {
		return name, ""
	}
	return name[:dot], name[dot:]
}

// abbreviated extensions stand for two.
var abbreviated = map[string]string{
	".svgz": ".svg.gz",
	".taz":  ".tar.gz",
	".tbz2": ".tar.bz2",
	".tgz":  ".tar.gz",
	".txz":  ".tar.xz",
	".tz":   ".tar.gz",
}

// compressed are the extensions of compressed files. Unlike the others they are
// case-sensitive.
var compressed = map[string]bool{
	".Z":   true,
	".br":  true,
	".bz2": true,
	".gz":  true,
	".xz":  true,
}

// types are MIME types by extension: first those of Python's own table, then further
// ones of newer Pythons that are common among results.
var types = map[string]string{
	".js":          "application/javascript",
	".mjs":         "application/javascript",
	".json":        "application/json",
	".webmanifest": "application/manifest+json",
	".doc":         "application/msword",
	".dot":         "application/msword",
	".wiz":         "application/msword",
	".nq":          "application/n-quads",
	".nt":          "application/n-triples",
	".a":           "application/octet-stream",
	".bin":         "application/octet-stream",
	".dll":         "application/octet-stream",
	".exe":         "application/octet-stream",
	".o":           "application/octet-stream",
	".obj":         "application/octet-stream",
	".so":          "application/octet-stream",
	".oda":         "application/oda",
	".pdf":         "application/pdf",
	".p7c":         "application/pkcs7-mime",
	".ai":          "application/postscript",
	".eps":         "application/postscript",
	".ps":          "application/postscript",
	".trig":        "application/trig",
	".m3u":         "application/vnd.apple.mpegurl",
	".m3u8":        "application/vnd.apple.mpegurl",
	".xlb":         "application/vnd.ms-excel",
	".xls":         "application/vnd.ms-excel",
	".pot":         "application/vnd.ms-powerpoint",
	".ppa":         "application/vnd.ms-powerpoint",
	".pps":         "application/vnd.ms-powerpoint",
	".ppt":         "application/vnd.ms-powerpoint",
	".pwz":         "application/vnd.ms-powerpoint",
	".wasm":        "application/wasm",
	".bcpio":       "application/x-bcpio",
	".cpio":        "application/x-cpio",
	".csh":         "application/x-csh",
	".dvi":         "application/x-dvi",
	".gtar":        "application/x-gtar",
	".hdf":         "application/x-hdf",
	".h5":          "application/x-hdf5",
	".latex":       "application/x-latex",
	".mif":         "application/x-mif",
	".cdf":         "application/x-netcdf",
	".nc":          "application/x-netcdf",
	".p12":         "application/x-pkcs12",
	".pfx":         "application/x-pkcs12",
	".ram":         "application/x-pn-realaudio",
	".pyc":         "application/x-python-code",
	".pyo":         "application/x-python-code",
	".sh":          "application/x-sh",
	".shar":        "application/x-shar",
	".swf":         "application/x-shockwave-flash",
	".sv4cpio":     "application/x-sv4cpio",
	".sv4crc":      "application/x-sv4crc",
	".tar":         "application/x-tar",
	".tcl":         "application/x-tcl",
	".tex":         "application/x-tex",
	".texi":        "application/x-texinfo",
	".texinfo":     "application/x-texinfo",
	".roff":        "application/x-troff",
	".t":           "application/x-troff",
	".tr":          "application/x-troff",
	".man":         "application/x-troff-man",
	".me":          "application/x-troff-me",
	".ms":          "application/x-troff-ms",
	".ustar":       "application/x-ustar",
	".src":         "application/x-wais-source",
	".rdf":         "application/xml",
	".wsdl":        "application/xml",
	".xpdl":        "application/xml",
	".xsl":         "application/xml",
	".zip":         "application/zip",
	".3gp":         "audio/3gpp",
	".3gpp":        "audio/3gpp",
	".3g2":         "audio/3gpp2",
	".3gpp2":       "audio/3gpp2",
	".aac":         "audio/aac",
	".adts":        "audio/aac",
	".ass":         "audio/aac",
	".loas":        "audio/aac",
	".au":          "audio/basic",
	".snd":         "audio/basic",
	".mp2":         "audio/mpeg",
	".mp3":         "audio/mpeg",
	".opus":        "audio/opus",
	".aif":         "audio/x-aiff",
	".aifc":        "audio/x-aiff",
	".aiff":        "audio/x-aiff",
	".ra":          "audio/x-pn-realaudio",
	".wav":         "audio/x-wav",
	".avif":        "image/avif",
	".bmp":         "image/bmp",
	".gif":         "image/gif",
	".heic":        "image/heic",
	".heif":        "image/heif",
	".ief":         "image/ief",
	".jpe":         "image/jpeg",
	".jpeg":        "image/jpeg",
	".jpg":         "image/jpeg",
	".png":         "image/png",
	".svg":         "image/svg+xml",
	".tif":         "image/tiff",
	".tiff":        "image/tiff",
	".ico":         "image/vnd.microsoft.icon",
	".ras":         "image/x-cmu-raster",
	".pnm":         "image/x-portable-anymap",
	".pbm":         "image/x-portable-bitmap",
	".pgm":         "image/x-portable-graymap",
	".ppm":         "image/x-portable-pixmap",
	".rgb":         "image/x-rgb",
	".xbm":         "image/x-xbitmap",
	".xpm":         "image/x-xpixmap",
	".xwd":         "image/x-xwindowdump",
	".eml":         "message/rfc822",
	".mht":         "message/rfc822",
	".mhtml":       "message/rfc822",
	".nws":         "message/rfc822",
	".css":         "text/css",
	".csv":         "text/csv",
	".htm":         "text/html",
	".html":        "text/html",
	".n3":          "text/n3",
	".bat":         "text/plain",
	".c":           "text/plain",
	".h":           "text/plain",
	".ksh":         "text/plain",
	".pl":          "text/plain",
	".srt":         "text/plain",
	".txt":         "text/plain",
	".rtx":         "text/richtext",
	".tsv":         "text/tab-separated-values",
	".vtt":         "text/vtt",
	".py":          "text/x-python",
	".etx":         "text/x-setext",
	".sgm":         "text/x-sgml",
	".sgml":        "text/x-sgml",
	".vcf":         "text/x-vcard",
	".xml":         "text/xml",
	".mp4":         "video/mp4",
	".m1v":         "video/mpeg",
	".mpa":         "video/mpeg",
	".mpe":         "video/mpeg",
	".mpeg":        "video/mpeg",
	".mpg":         "video/mpeg",
	".mov":         "video/quicktime",
	".qt":          "video/quicktime",
	".webm":        "video/webm",
	".avi":         "video/x-msvideo",
	".movie":       "video/x-sgi-movie",

	".gltf": "model/gltf+json",
	".glb":  "model/gltf-binary",
	".md":   "text/markdown",
	".rtf":  "application/rtf",
	".webp": "image/webp",
}
