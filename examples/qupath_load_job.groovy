/*
 * Loads the regions of a finished SlideReason job into the image that is open in QuPath (0.5 or later).
 *
 * Set SERVICE and JOB below and choose "Run" in the script editor; or from a command line:
 *
 *     QuPath script --image biopsy.scn --save --args http://127.0.0.1:8000 --args JOB qupath_load_job.groovy
 *
 * QuPath shows a slide whose format states the scanned area (MIRAX, Leica, Hamamatsu, …) from that area's corner, unless
 * it was opened with "--no-crop" or by Bio-Formats. Which of the two frames is open is seen by the image's size, and the
 * service is asked for the regions in it. Regions of the same job that are there already are replaced: their ids are
 * the same in overlay, report and here. Research use only.
 */

import com.google.gson.JsonParser
import qupath.lib.io.PathIO

def SERVICE = 'http://127.0.0.1:8000'
def JOB = ''

def given = binding.hasVariable('args') && args ? args as List : []
def service = (given.size() > 0 ? given[0] : SERVICE).replaceAll('/+$', '')
def job = given.size() > 1 ? given[1] : JOB
if (!job)
    throw new IllegalArgumentException('JOB is empty: set it in the script, or give --args SERVICE --args JOB')

def open(String address, String accept) {
    def connection = new URL(address).openConnection()
    connection.setRequestProperty('Accept', accept)
    connection.setConnectTimeout(10_000)
    if (connection.getResponseCode() != 200)
        throw new IOException("${address}: ${connection.getResponseCode()} ${connection.getErrorStream()?.text}")
    return connection.getInputStream()
}

def imageData = getCurrentImageData()
if (imageData == null)
    throw new IllegalStateException('no image is open; open the slide that the job was about')

// Which frame does the open image have?
def report = open("${service}/v1/jobs/${job}/report", 'application/json').withCloseable {
    JsonParser.parseReader(new InputStreamReader(it, 'UTF-8')).getAsJsonObject()
}
def slide = report.getAsJsonObject('slide')
def server = imageData.getServer()
def size = [server.getWidth(), server.getHeight()]
def whole = [slide.get('width_px0').getAsInt(), slide.get('height_px0').getAsInt()]
def bounds = slide.get('bounds_px0').isJsonNull() ? null : slide.getAsJsonArray('bounds_px0').collect { it.getAsInt() }
def frame
if (size == whole)
    frame = 'level0'
else if (bounds != null && size == bounds[2..3])
    frame = 'bounds'
else
    throw new IllegalStateException(
        "the open image is ${size[0]} x ${size[1]} px; the job's slide is ${whole[0]} x ${whole[1]} px" +
        (bounds ? ", its scanned area ${bounds[2]} x ${bounds[3]} px" : '') + '. Open that slide at full resolution.')

// Load the regions, in place of those of the same job that are there.
def regions = open("${service}/v1/jobs/${job}/regions?frame=${frame}", 'application/geo+json').withCloseable {
    PathIO.readObjectsFromGeoJSON(it)
}
def ids = regions.collect { it.getID() } as Set
removeObjects(getAllObjects().findAll { it.getID() in ids }, true)
addObjects(regions)
fireHierarchyUpdate()
println "${regions.size()} regions of job ${job} in frame ${frame}. ${report.get('answer').getAsString()}"
